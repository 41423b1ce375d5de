"""What sparsities keep of the past, and how they count within a document."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lcx import seqpar
from lcx.ops.attention import Bias
from lcx.ops.tiles import Index
from lcx.positions import PositionScheme
from lcx.seqpar import Affine, Shards
from lcx.types import Context, State


def cache(batch: int, slots: int, groups: int, width: int, dtype: Any) -> State:
    """Room for `slots` tokens: keys, values, positions; an empty slot is in no document."""
    return {
        "k": jnp.zeros((batch, slots, groups, width), dtype),
        "v": jnp.zeros((batch, slots, groups, width), dtype),
        "positions": jnp.zeros((batch, slots), jnp.int32),
        "segments": jnp.full((batch, slots), -1, jnp.int32),
    }


def entries(k: Array, v: Array, ctx: Context) -> dict[str, Array]:
    """What a cache keeps of a piece."""
    return {"k": k, "v": v, "positions": ctx.positions, "segments": segments_of(ctx)}


def append(
    state: State | None, new: dict[str, Array], shards: Shards | None
) -> tuple[dict[str, Array], Index, State | None]:
    """The entries of the past and of a piece; the index of its first among them; the state after.

    A growing cache has its `length` tokens followed by the piece's. Without a state there is none.
    With shards, every one has the entries of all, and the index is that of its own first.

    Raises ValueError for a piece that no cache of this size could hold.
    """
    begin = seqpar.index(shards) * new["k"].shape[1]
    new = {n: seqpar.gather(a, shards) for n, a in new.items()}
    if state is None:
        return new, begin, None
    length, slots = new["k"].shape[1], state["k"].shape[1]
    if length > slots:
        raise ValueError(f"a piece of {length} tokens exceeds the state's {slots}")
    put, at = jax.lax.dynamic_update_slice_in_dim, state["length"]
    seen = {n: put(state[n], new[n], at, axis=1) for n in new}
    return seen, at + begin, seen | {"length": at + length}


def slide(state: State, new: dict[str, Array], shards: Shards | None) -> tuple[State, State]:
    """The last tokens followed by a piece, to be seen; and the last of those, to be kept."""
    slots = state["k"].shape[1]
    before = {n: seqpar.halo(new[n], state[n], shards) for n in new}
    seen = {n: jnp.concatenate([before[n], new[n]], axis=1) for n in new}
    return seen, seqpar.last({n: a[:, a.shape[1] - slots :] for n, a in seen.items()}, shards)


def bias_of(
    position: PositionScheme, heads: int, query: Int[Array, "B T"], key: Int[Array, "B S"]
) -> Bias | None:
    """What a scheme takes from the scores of queries and keys at these positions."""
    slopes = position.slopes(heads)
    return None if slopes is None else Bias(slopes, (query, key))


def segments_of(ctx: Context) -> Int[Array, "B T"]:
    """The document of each token; 0 where a row is one document."""
    return jnp.zeros_like(ctx.positions) if ctx.segments is None else ctx.segments


def ranks(
    ctx: Context, before: Int[Array, " B"] | None
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """How many tokens of its document each token has before it, in this row or stream.

    Not its position: the first piece of a row may be the rest of a longer document. `before`: the
    rank of the piece's first token if it goes on with a document; None: 0. Beside it that rank of
    this shard.
    """
    batch, length = ctx.positions.shape
    before = jnp.zeros(batch, jnp.int32) if before is None else before
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
