"""How far apart two ways to compute the same thing may be, said by the problem and not by a habit.

fp32 rounds each step of a computation by up to 2^-24 of what it makes. A computation that does
nothing worse gives the exact result of arguments that differ from its own by a few such roundings
(Higham 2002, section 1.5). So the arguments are moved, each by a small random part of itself, and
how far every array of the result moves with them is the unit of its error: large for a sum whose
terms cancel, and for what is divided by something small. ROUNDINGS of these units are allowed.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

UNIT = 2.0**-24
"""The most that fp32 rounds by, relative to the number."""

ROUNDINGS = 256
"""Measured, in units: RWKV-4's denominators on shards 32, Mamba-2's step_bias in pieces 21; all
else below 10. A wrong term: thousands."""

MOVED = 2.0**-14
"""Little enough for a result to move in proportion, and far more than it is rounded by."""


def floating(a: Any) -> bool:
    """Whether an array holds floating numbers."""
    return bool(np.issubdtype(np.asarray(a).dtype, np.floating))


def moved(tree: Any, seed: int) -> Any:
    """Every floating number times 1 plus at most MOVED either way."""
    rng = np.random.default_rng(seed)

    def move(a):
        a = np.asarray(a)
        part = rng.uniform(-MOVED, MOVED, a.shape)
        return (a * (1 + part)).astype(a.dtype) if floating(a) else a

    return jax.tree.map(move, tree)


def rounding(call: Callable, *args: Any, draws: int = 3) -> Any:
    """What one rounding of every argument may do to each array of call(*args): a tree of numbers.

    At least a rounding of the result's largest entry: where a gradient is 0 exactly, it is the
    difference of terms of the size of other gradients.
    """
    leaves, structure = jax.tree.flatten(call(*args))
    own = [np.asarray(a) for a in leaves]
    largest = max(np.abs(a).max(initial=0) for a in own if floating(a))
    units = [UNIT * float(largest)] * len(own)
    for seed in range(draws):
        result = jax.tree.leaves(call(*moved(args, seed)))
        for i, (a, b) in enumerate(zip(result, own, strict=True)):
            if floating(b):
                far = np.abs(np.asarray(a, np.float64) - b).max(initial=0)
                units[i] = max(units[i], float(far) * UNIT / MOVED)
    return structure.unflatten(units)
