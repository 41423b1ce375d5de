"""One sublayer in miniature: parameters, an input, packed documents, and what it makes of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lcx.checking.bounds import ROUNDINGS, floating, rounding
from lcx.model import LM
from lcx.types import Context, CrossLayer, Dims, Output, Params, Policy, State, Sublayer

ROWS, LENGTH = 2, 80
"""Tokens: more than a chunk of lcx's ops, a multiple of none, and even."""

WIDTHS = (64, 96, 128, 160, 192, 256, 320, 384, 512)
"""Of the miniature, whichever its class allows; heads of at least NARROWEST features."""
NARROWEST = 8


@cache
def _hurried() -> dict[str, bool | int]:
    """XLA's options for machine code that runs once: compiled in an eighth of the time on a CPU.

    Those that this version and the device have.
    """
    found: dict[str, bool | int] = {}
    wanted = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    for option, value in wanted.items():
        try:
            jax.jit(lambda x: x + 1, compiler_options={option: value})(0)
        except Exception:  # jaxlib has no error of its own for it
            continue
        found[option] = value
    return found


def compiled(call: Callable) -> Callable:
    """`jax.jit`, in a hurry."""
    return jax.jit(call, compiler_options=_hurried() or None)


@contextmanager
def exactly() -> Iterator[None]:
    """On the CPU where there is one, and with products of fp32 in fp32, as the bounds have it."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        device = None
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        yield


class Result(NamedTuple):
    """An output, and the gradients of a fixed random projection of it."""

    y: Float[Array, "B T D"]
    params: Params
    x: Float[Array, "B T D"]


def gradients_of(call: Callable) -> Callable[..., Result]:
    """Compiled (params, x, ctx, weight) -> Result of call(params, x, ctx).

    weight [B T]: of each token's output in what gradients are of; None: 1.
    """

    @compiled
    def result(params, x, ctx, weight=None) -> Result:
        probe = jax.random.normal(jax.random.key(9), x.shape[1:])

        def loss(params, x):
            y = call(params, x, ctx)
            each = y.astype(jnp.float32) * probe
            return (each if weight is None else each * weight[..., None]).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return Result(y, *gradients)

    return result


def in_pieces(
    sublayer: Sublayer, params: Params, x: Array, ctx: Context, dims: Dims, cuts: Sequence[int]
) -> Float[Array, "B T D"]:
    """The outputs of consecutive calls on x[:, :cuts[0]], x[:, cuts[0]:cuts[1]], and so on."""
    state = sublayer.init_state(dims, x.shape[0], x.shape[1])
    outputs, begin = [], 0
    for end in (*cuts, x.shape[1]):
        piece = jax.tree.map(lambda a, b=begin, e=end: a[:, b:e], ctx)
        y, state, _ = sublayer(params, x[:, begin:end], piece, state)
        outputs.append(y)
        begin = end
    return jnp.concatenate(outputs, axis=1)


def documents(rows: int, length: int, offset: int) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Positions and segments of uneven documents; the first of a row is the rest of a longer one.

    That has `offset` tokens before the row. The first row ends in padding, and its second document
    has a single token.
    """
    positions, segments = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        third, padding = length // 3 + min(5 * row, length // 6), min(20, length // 6)
        begin, before = 0, offset
        for number, end in enumerate((third, third + 1, length - padding * (row == 0)), start=1):
            segments[row, begin:end] = number
            positions[row, begin:end] = before + np.arange(end - begin)
            begin, before = end, 0
    return jnp.asarray(positions), jnp.asarray(segments)


def outside(got: Any, expected: Any, unit: Any) -> Any:
    """Where an array is not within ROUNDINGS of its unit, a number; where it is not finite, too."""
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return ~(np.abs(a - b) <= ROUNDINGS * unit)  # a NaN is nowhere


@dataclass(frozen=True)
class TwoLayers:
    """A `CrossLayer` twice, one after the other: the second is handed what the first hands on."""

    layer: Any

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        return self.layer.init(dims, rngs)

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return tuple(self.layer.init_state(dims, batch, capacity) for _ in range(2))

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        first, second = (None, None) if state is None else state
        handed = self.layer.handed.initial(x)
        # of another input, so that both layers do not have the same to hand on
        out, handed = self.layer.share(params, jnp.flip(x, axis=2), ctx, first, handed)
        after = out.state
        out, _ = self.layer.share(params, x, ctx, second, handed)
        return out if state is None else out._replace(state=(after, out.state))


@dataclass(eq=False)  # compared by identity, and never changed: what it computes is kept
class Trial:
    """A sublayer, what messages call it, and what laws try it on."""

    name: str
    sublayer: Sublayer
    dims: Dims
    longest: int = LENGTH
    """Tokens of the longest text; positions stay below."""
    most: int = LENGTH
    """Tokens that are tried, where texts have as many."""

    @property
    def length(self) -> int:
        """T, even."""
        return min(self.most, self.longest) // 2 * 2

    @property
    def tried(self) -> Sublayer:
        """What is called: of a `CrossLayer` two layers."""
        return TwoLayers(self.sublayer) if isinstance(self.sublayer, CrossLayer) else self.sublayer

    @property
    def half(self) -> "Trial":
        """The same in bf16, with the same parameters."""
        policy = replace(self.dims.policy, compute="bfloat16")
        half = replace(self, dims=replace(self.dims, policy=policy))
        fresh = jax.eval_shape(half.fresh)
        pairs = zip(jax.tree.leaves(fresh), jax.tree.leaves(self.params), strict=True)
        values = [a.astype(there.dtype) for there, a in pairs]
        half.params = jax.tree.unflatten(jax.tree.structure(fresh), values)
        return half

    def fresh(self) -> Params:
        """First values."""
        with nnx.use_eager_sharding(False):
            return self.sublayer.init(self.dims, nnx.Rngs(1))

    @cached_property
    def params(self) -> Params:
        """Moved away from first values, above all from zeros, behind which everything is hidden."""

        @compiled
        def params() -> Params:
            leaves, structure = jax.tree.flatten(self.fresh())
            keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))

            def away(a, key):
                if not jnp.issubdtype(a.dtype, jnp.floating):
                    return a
                noise = 0.2 * jax.random.normal(key, a.shape, a.dtype)
                return jnp.where(a == 0, noise, a * (1 + noise))  # what is positive may have to be

            return structure.unflatten(map(away, leaves, keys))

        return params()

    @cached_property
    def x(self) -> Float[Array, "B T D"]:
        """A normed residual stream."""
        return self.input(self.length)

    def input(self, length: int) -> Float[Array, "B T D"]:
        """The same of another length."""
        x = jax.random.normal(jax.random.key(1), (ROWS, length, self.dims.model))
        return x.astype(self.dims.policy.compute)

    @cached_property
    def packed(self) -> Context:
        """Documents that are packed: of several lengths, and the rest of a longer one."""
        offset = min(5, self.longest - self.length)
        positions, segments = documents(ROWS, self.length, offset)
        lengths = np.where(np.asarray(segments) == 2, self.length // 2, self.longest)
        lengths = jnp.asarray(lengths, jnp.int32)
        return Context.of(positions, segments, lengths=lengths)

    def ones(self, length: int) -> Int[Array, "B T"]:
        """Segments of rows that are one document each."""
        return jnp.ones((ROWS, length), jnp.int32)

    def one_document(self, length: int, segments: Int[Array, "B T"] | None = None) -> Context:
        """Of rows of so many tokens; `segments` cut them into documents, which go on counting."""
        positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (ROWS, length))
        return Context.of(positions, segments, lengths=jnp.full_like(positions, self.longest))

    @cached_property
    def forward(self) -> Callable[..., Float[Array, "B T D"]]:
        """Compiled call without a state."""
        return compiled(lambda params, x, ctx: self.tried(params, x, ctx).x)

    @cached_property
    def whole(self) -> Callable[..., Result]:
        """`gradients_of` one call without a state."""
        return gradients_of(lambda params, x, ctx: self.tried(params, x, ctx).x)

    def output(self, x: Float[Array, "B T D"], ctx: Context) -> np.ndarray:
        """Of one call without a state, [B T D]; through `whole`, which is compiled already."""
        return np.asarray(self.whole(self.params, x, ctx, self.evenly).y)

    @cached_property
    def evenly(self) -> Float[Array, "B T"] | None:
        """The weights of all outputs alike: an array, so that one compilation serves any."""
        return jnp.ones((ROWS, self.length))

    @cached_property
    def result(self) -> Result:
        """Of the packed documents."""
        return jax.device_get(self.whole(self.params, self.x, self.packed, self.evenly))

    @cached_property
    def units(self) -> Any:
        """What a rounding of the arguments may do to `result`."""
        return self.rounding(self.packed, self.evenly)

    def rounding(self, ctx: Context, weight: Float[Array, "B T"] | None) -> Any:
        """What a rounding of the arguments may do to each array: a `Result` of floats."""

        def call(params, x):
            return self.whole(*jax.device_put((params, x)), ctx, weight)

        return rounding(call, self.params, self.x)

    def rounding_forward(self, x: Float[Array, "B T D"], ctx: Context) -> float:
        """What a rounding of the arguments may do to a `forward`."""

        def call(params, x):
            return self.forward(*jax.device_put((params, x)), ctx)

        return rounding(call, self.params, x)


def miniature(name: str, sublayer: Sublayer, model: LM, longest: int) -> Trial:
    """A trial of a sublayer of a model: of a width that its class allows, and few tokens.

    The model's own width where that is no larger, or where the class allows no other.
    """
    layers = model.dims.layers
    heads = getattr(sublayer, "heads", 1)
    heads = heads if type(heads) is int else 1
    for width in WIDTHS:
        if width >= model.width:
            break
        dims = Dims(width, layers=layers, layer=min(1, layers - 1), policy=Policy())
        if width % max(heads, 1) or width // max(heads, 1) < NARROWEST:
            continue
        try:
            jax.eval_shape(partial(_made, sublayer, dims))
        except Exception:  # whatever its class says of this width, or fails with
            continue
        return Trial(name, sublayer, dims, longest)
    return Trial(name, sublayer, Dims(model.width, layers, min(1, layers - 1), Policy()), longest)


def _made(sublayer: Sublayer, dims: Dims) -> Output:
    """What a sublayer makes of little."""
    with nnx.use_eager_sharding(False):
        params = sublayer.init(dims, nnx.Rngs(0))
    x = jnp.zeros((1, 2, dims.model))
    return sublayer(params, x, Context.of(jnp.arange(2, dtype=jnp.int32)[None]))


def finite(tree: Any) -> bool:
    """Whether every number of a tree is."""
    arrays = (np.asarray(a, np.float64) for a in jax.tree.leaves(tree) if floating(a) or _bf16(a))
    return all(math.isfinite(np.abs(a).max(initial=0)) for a in arrays)


def _bf16(a: Any) -> bool:
    return a.dtype == jnp.bfloat16
