"""Optimized code for what computes for long: the tests' own flags ask for code that runs once."""

from collections.abc import Callable

import jax

from lcx.parallel.xla import known_options


def optimized(call: Callable) -> Callable:
    """`jax.jit` with the optimizations that a user has."""
    options = known_options({"xla_backend_optimization_level": 3})
    return jax.jit(call, compiler_options=options or None)
