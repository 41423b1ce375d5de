"""What sparsities keep of the past, and how they count within a document."""

from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lcx.ops.attention import Bias
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Affine, Shards
from lcx.positions import PositionScheme
from lcx.sparsity.protocol import Request, Sparsity
from lcx.types import Context, State


class Entries(NamedTuple):
    """Tokens as attention sees them, in the order of the text."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G V"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S *n"]
    """The document of each, or what else decides who sees it; -1 where a slot is empty."""


@runtime_checkable
class Past(Protocol):
    """`Entries`, or another NamedTuple of arrays [B S ...], keys among them."""

    @property
    def k(self) -> Array: ...


Kept = TypeVar("Kept", bound=Past)


def empty(batch: int, slots: int, groups: int, width: int, dtype: DTypeLike) -> Entries:
    """Room for `slots` tokens."""
    shape = (batch, slots, groups, width)
    return Entries(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), *unmarked(batch, slots))


def unmarked(batch: int, slots: int) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """The positions and segments of empty slots."""
    return jnp.zeros((batch, slots), jnp.int32), jnp.full((batch, slots), -1, jnp.int32)


def before_first(sparsity: Sparsity, asked: Request) -> State:
    """The state that was given; where there is none, that before the text's first token."""
    if asked.state is not None:
        return asked.state
    batch, length, groups, width = asked.k.shape
    capacity = seqpar.length(length, asked.ctx.shards)
    return sparsity.init_state(batch, capacity, groups, width, asked.k.dtype)


def fits(length: int, slots: int) -> None:
    """Raise ValueError for a piece that no cache of this size could hold."""
    if length > slots:
        raise ValueError(f"a piece of {length} tokens exceeds the state's {slots}")


def slide(past: Kept, new: Kept, shards: Shards | None) -> tuple[Kept, Kept]:
    """The last tokens followed by a piece, to be seen; and the last of those, to be kept."""
    slots = past.k.shape[1]
    before = jax.tree.map(lambda p, n: seqpar.halo(n, p, shards), past, new)
    seen = jax.tree.map(lambda b, n: jnp.concatenate([b, n], axis=1), before, new)
    kept = jax.tree.map(lambda a: a[:, a.shape[1] - slots :], seen)
    return seen, seqpar.last(kept, shards)


def bias_of(
    position: PositionScheme, heads: int, query: Int[Array, "B T"], key: Int[Array, "B S"]
) -> Bias | None:
    """What a scheme takes from the scores of queries and keys at these positions."""
    slopes = position.slopes(heads)
    return None if slopes is None else Bias(slopes, (query, key))


def segments_of(ctx: Context) -> Int[Array, "B T"]:
    """The document of each token; 0 where a row is one document."""
    return jnp.zeros_like(ctx.positions) if ctx.segments is None else ctx.segments


def ranks(ctx: Context, before: Int[Array, " B"]) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """How many tokens of its document each token has before it, in this row or stream.

    Not its position: the first piece of a row may be the rest of a longer document. `before`: the
    rank of the piece's first token if it goes on with a document. Beside it that rank of this
    shard.
    """
    length = ctx.positions.shape[1]
    index = jnp.arange(length, dtype=jnp.int32)
    if ctx.starts is None:
        before = before + seqpar.index(ctx.shards) * length
        return index + before[:, None], before
    start = jax.lax.cummax(jnp.where(ctx.starts, index, -1), axis=1)
    last = start[:, -1]
    # a shard lengthens the document that reaches into it, or begins another
    own = Affine((last < 0).astype(jnp.int32), length - jnp.maximum(last, 0))
    before = seqpar.entering(own, before, ctx.shards)
    return jnp.where(start < 0, index + before[:, None], index - start), before
