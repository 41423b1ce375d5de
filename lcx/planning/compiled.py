"""A training step, compiled for devices that nobody has: its bytes, and what it sends.

XLA lays the step out for the CPU devices of this process, however many it was given, and
nothing is run: no array is made.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from lcx.experiment import Experiment
from lcx.losses import Teacher, needs_reference
from lcx.model import LM
from lcx.parallel.mesh import BATCH, make_mesh, shardings
from lcx.parallel.xla import known_options
from lcx.planning.hlo import Collectives, collectives
from lcx.training.loop import TrainState, fresh_state, held, jit_step
from lcx.types import Batch, Leaves

COMPILES = 4
"""At most so many programs are compiled to find the longest context."""

OPTIONS = {
    # as accelerators do it: little memory before many threads
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # soonest done with machine code that nobody runs; jax 0.12 has no older emitters
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


class Measured(NamedTuple):
    """One compiled step: bytes of one device."""

    parameters: int
    optimizer: int
    arguments: int
    """Parameters, optimizer, step and batch."""
    memory: int
    """Arguments, results that do not take their place, and temporaries, at the peak."""
    sent: Collectives


def measure(experiment: Experiment, teacher: LM | None = None) -> Measured:
    """Compile the training step of an experiment for this process's devices.

    teacher: what it learns from; its parameters count to the others. Raises ValueError where
    devices are too few for the mesh.
    """
    half = replace(experiment, model=as_if_half(experiment.model))
    taught = None if teacher is None else as_if_half(teacher)
    compiled, state, _, frozen = compile_step(half, taught)
    return Measured(
        parameters=device_bytes(state.params) + device_bytes(frozen),
        optimizer=device_bytes(state.optimizer),
        arguments=compiled.memory_analysis().argument_size_in_bytes,
        memory=peak(compiled),
        sent=collectives(compiled.as_text(), experiment.mesh.devices),
    )


def as_if_half(model: LM) -> LM:
    """The model with fp16 in place of bf16, which has the same size.

    CPUs compute bf16 in fp32, in buffers and on the wire.
    """
    policy = model.policy
    half: Any = {
        name: "float16" for name in ("params", "compute") if getattr(policy, name) == "bfloat16"
    }
    return replace(model, policy=replace(policy, **half))


def compile_step(
    experiment: Experiment, teacher: LM | None = None
) -> tuple[Any, TrainState, Batch, tuple[Leaves, Teacher | None]]:
    """The compiled step; the state, batch, and what it does not change, as shapes."""
    settings, mesh = experiment.train, make_mesh(experiment.mesh)
    optimizer = settings.optimizer.transform(settings.steps)

    key = jax.eval_shape(lambda: jax.random.key(0))
    abstract = jax.eval_shape(partial(fresh_state, experiment, optimizer), key)
    where = shardings(abstract, mesh)
    state = jax.tree.map(laid, abstract, where)
    tokens = jax.ShapeDtypeStruct((settings.batch, settings.length), jnp.int32)
    names = ("tokens", "targets", "positions", "segments")
    rows: Any = laid(tokens, NamedSharding(mesh, BATCH))
    batch = Batch(**dict.fromkeys(names, rows))
    if needs_reference(settings.loss):
        known: Any = laid(jax.ShapeDtypeStruct(tokens.shape, jnp.float32), rows.sharding)
        batch = batch._replace(reference=known)

    def parameters(model: LM) -> Any:
        found = jax.eval_shape(model.init, key)
        return jax.tree.map(laid, found, shardings(found, mesh))

    taught = None if teacher is None else Teacher(teacher, parameters(teacher))
    fixed = held(experiment, parameters(experiment.model)), taught
    with jax.set_mesh(mesh):
        step = jit_step(experiment, optimizer, where, mesh)
        options: Any = known_options(OPTIONS)
        compiled = step.lower(state, batch, *fixed).compile(compiler_options=options)
        return compiled, state, batch, fixed


def laid(array: Any, where: Any) -> jax.ShapeDtypeStruct:
    """An array that is not there, and where it would lie."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)


def peak(compiled: Any) -> int:
    """Arguments, results that do not take their place, and temporaries: bytes of one device."""
    of = compiled.memory_analysis()
    results = of.output_size_in_bytes - of.alias_size_in_bytes
    return of.argument_size_in_bytes + results + of.temp_size_in_bytes


def device_bytes(tree: Any) -> int:
    """Of the piece of each array that one device has."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


class Fit(NamedTuple):
    """Memory against the length, from compiled steps."""

    slope: float
    """Bytes a token of T, by the two longest."""
    longest: int
    """Tokens."""


def fit(length: int, unit: int, room: float, memory: Callable[[int], int]) -> Fit:
    """The longest multiple of `unit` whose step takes at most `room` bytes, and was compiled.

    A line through the two longest points says which length to try next: at short lengths the
    optimizer's peak hides what activations take.
    """
    points = {n: memory(n) for n in (length, 4 * length)}
    while True:
        (n, low), (m, high) = sorted(points.items())[-2:]
        slope = max((high - low) / (m - n), 0.0)
        fitting = max((n for n, taken in points.items() if taken <= room), default=0)
        if len(points) == COMPILES or (fitting and points[fitting] > 0.95 * room):
            return Fit(slope, fitting)
        aim = m + (room - high) / slope if slope else math.inf
        aim = int(min(0.97 * aim, 64 * m)) // unit * unit
        if aim < unit or aim in points:
            return Fit(slope, fitting)
        points[aim] = memory(aim)
