"""The laws of what sublayers are made of: position schemes, sparsities and norms of one's own.

Each is also tried inside the sublayer that has it (`lcx.checking.laws`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lcx.checking.bounds import rounding
from lcx.checking.laws import BrokenLawError, shown
from lcx.checking.smallest import changed_where, first_position
from lcx.checking.trial import LENGTH, ROWS, compiled, documents, finite, outside
from lcx.positions import PositionScheme
from lcx.sparsity import Request, Sparsity
from lcx.types import Context, Dims, Policy

HEADS, WIDTH = 2, 16


@dataclass(frozen=True)
class SchemeTrial:
    """A position scheme, what messages call it, and heads to encode."""

    name: str
    scheme: PositionScheme
    width: int
    """Features of a head of the model that has it."""
    longest: int

    @property
    def length(self) -> int:
        """T."""
        return min(LENGTH, self.longest)

    @property
    def ctx(self) -> Context:
        """Uneven documents, the first of which is the rest of a longer one."""
        positions, segments = documents(ROWS, self.length, min(5, self.longest - self.length))
        lengths = jnp.full_like(positions, self.longest)
        return Context.of(positions, segments, lengths=lengths)

    def heads(self) -> tuple[jax.Array, jax.Array]:
        """q and k."""
        keys = jax.random.split(jax.random.key(3), 2)
        shape = (ROWS, self.length, HEADS, self.width)
        return jax.random.normal(keys[0], shape), jax.random.normal(keys[1], shape)


def gives_encoded_heads(trial: SchemeTrial) -> None:
    """q and k keep shape and dtype; slopes and decays are those of all heads and features."""
    name, scheme = trial.name, trial.scheme
    q, k = trial.heads()
    for dtype in ("float32", "bfloat16"):
        given = q.astype(dtype), k.astype(dtype)
        out = scheme(*given, trial.ctx)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise BrokenLawError(f"{name} gave a {type(out).__name__}, expected the pair q, k")
        for which, before, after in zip("qk", given, out, strict=True):
            if (after.shape, after.dtype) != (before.shape, before.dtype):
                raise BrokenLawError(
                    f"{name} gave {which} of {shown(after.shape)} {after.dtype}, expected "
                    f"{shown(before.shape)} {before.dtype}"
                )
        if not finite(out):
            raise BrokenLawError(f"{name} gave nan or inf for {dtype}")
    slopes, decay = scheme.slopes(HEADS), scheme.decay(trial.width)
    if slopes is not None and len(slopes) != HEADS:
        raise BrokenLawError(
            f"{name}.slopes({HEADS}) gave {len(slopes)} numbers, expected one for each head"
        )
    if decay is not None and np.shape(decay) != (trial.width,):
        raise BrokenLawError(
            f"{name}.decay({trial.width}) is of {shown(np.shape(decay))}, expected one number for "
            f"each of {trial.width} features"
        )


def encodes_each_token_alone(trial: SchemeTrial) -> None:
    """What a token becomes depends on itself and its position alone."""
    q, k = trial.heads()
    ctx = trial.ctx
    call = compiled(lambda q, k, ctx: trial.scheme(q, k, ctx))
    units = rounding(lambda q, k: call(q, k, ctx), q, k)
    whole = call(q, k, ctx)
    token = trial.length // 2
    at = (jnp.arange(trial.length) == token)[None, :, None]
    changed = call(changed_where(at, q), changed_where(at, k), ctx)
    others = np.arange(trial.length) != token
    for a, b, unit in zip(changed, whole, units, strict=True):
        far = outside(a, b, unit).any(axis=(2, 3)) & others
        if far.any():
            raise BrokenLawError(
                f"{trial.name} mixes tokens: changing token {token} changes what is encoded at "
                f"position {first_position(far[..., None])} (of {trial.length} tokens)"
            )


def goes_by_the_positions(trial: SchemeTrial) -> None:
    """A piece of a text is encoded as in the whole: by ctx.positions, and not by its index."""
    q, k = trial.heads()
    ctx, begin = trial.ctx, trial.length // 3
    call = compiled(lambda q, k, ctx: trial.scheme(q, k, ctx))
    units = rounding(lambda q, k: call(q, k, ctx), q, k)
    whole = call(q, k, ctx)
    rest = jax.tree.map(lambda a: a[:, begin:], ctx)
    piece = call(q[:, begin:], k[:, begin:], rest)
    for a, b, unit in zip(piece, whole, units, strict=True):
        far = outside(a, b[:, begin:], unit).any(axis=(2, 3))
        if far.any():
            at = first_position(far[..., None])
            position = int(ctx.positions[int(far[:, at].argmax()), begin + at])
            raise BrokenLawError(
                f"{trial.name} does not go by ctx.positions: a token at position {position} is "
                f"encoded otherwise as number {at} of a piece than as number {begin + at} of a row"
            )


SCHEME_LAWS: dict[str, Callable[[SchemeTrial], None]] = {
    "shapes": gives_encoded_heads,
    "causal": encodes_each_token_alone,
    "pieces": goes_by_the_positions,
}


@dataclass(frozen=True)
class SparsityTrial:
    """A sparsity, what messages call it, and what it is asked."""

    name: str
    sparsity: Sparsity
    position: PositionScheme
    longest: int


def answers_attention(trial: SparsityTrial) -> None:
    """o is as the values, lse [B T H] in fp32; a query sees between no key and all of the past."""
    name, length = trial.name, min(LENGTH, trial.longest)
    q = jax.ShapeDtypeStruct((ROWS, length, HEADS, WIDTH), jnp.bfloat16)
    ctx = Context.of(jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (ROWS, length)))
    out = jax.eval_shape(lambda q: trial.sparsity(Request(q, q, q, ctx, trial.position)), q)
    for what, expected in (("o", q.dtype), ("lse", jnp.dtype("float32"))):
        if not hasattr(out, what):
            raise BrokenLawError(f"{name} gave a {type(out).__name__}, expected lcx's Attended")
        got, shape = getattr(out, what), q.shape if what == "o" else q.shape[:3]
        if (got.shape, got.dtype) != (shape, expected):
            raise BrokenLawError(
                f"{name} gave {what} of {shown(got.shape)} {got.dtype}, expected {shown(shape)} "
                f"{expected}"
            )
    seen = trial.sparsity.keys_seen(length)
    if not 0 <= seen <= length:
        raise BrokenLawError(
            f"{name}.keys_seen({length}) is {seen}, expected from 0 to {length} keys"
        )


SPARSITY_LAWS: dict[str, Callable[[SparsityTrial], None]] = {"shapes": answers_attention}


@dataclass(frozen=True)
class NormTrial:
    """A norm, and what messages call it."""

    name: str
    norm: Any
    width: int

    def apply(self, x: jax.Array, compute: Literal["float32", "bfloat16"]) -> jax.Array:
        """Its output, with fresh parameters."""
        dims = Dims(self.width, policy=Policy(compute=compute))
        with nnx.use_eager_sharding(False):
            return self.norm.init(dims, nnx.Rngs(0))(x)


def keeps_shape_and_dtype(trial: NormTrial) -> None:
    """A norm keeps shape and dtype."""
    for compute in ("float32", "bfloat16"):
        x = jax.ShapeDtypeStruct((ROWS, 4, trial.width), compute)
        y = jax.eval_shape(partial(trial.apply, compute=compute), x)
        if (y.shape, y.dtype) != (x.shape, x.dtype):
            raise BrokenLawError(
                f"{trial.name} gave {shown(y.shape)} {y.dtype}, expected {shown(x.shape)} {x.dtype}"
            )


def norms_each_token_alone(trial: NormTrial) -> None:
    """A norm looks at one token."""
    x = jax.random.normal(jax.random.key(4), (ROWS, 4, trial.width))
    call = compiled(partial(trial.apply, compute="float32"))
    y, unit = call(x), rounding(call, x)
    if not finite(y):
        raise BrokenLawError(f"{trial.name} gave nan or inf")
    for token in range(4):
        changed = call(changed_where((jnp.arange(4) == token)[None], x))
        far = outside(changed, y, unit).any(axis=(0, 2)) & (np.arange(4) != token)
        if far.any():
            raise BrokenLawError(
                f"{trial.name} mixes tokens: changing token {token} changes the output at position "
                f"{far.argmax()} (of 4 tokens)"
            )


NORM_LAWS: dict[str, Callable[[NormTrial], None]] = {
    "shapes": keeps_shape_and_dtype,
    "causal": norms_each_token_alone,
}
