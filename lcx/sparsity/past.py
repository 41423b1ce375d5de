"""What sparsities keep of the past, and how they count within a document."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lcx.ops.attention import Bias
from lcx.ops.blockwise import Index
from lcx.positions import PositionScheme
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
    state: State | None, new: dict[str, Array]
) -> tuple[dict[str, Array], Index, State | None]:
    """The entries of the past and of a piece; the index of its first among them; the state after.

    A growing cache has its `length` tokens followed by the piece's. Without a state there is none.

    Raises ValueError for a piece that no cache of this size could hold.
    """
    if state is None:
        return new, 0, None
    length, slots = new["k"].shape[1], state["k"].shape[1]
    if length > slots:
        raise ValueError(f"a piece of {length} tokens exceeds the state's {slots}")
    put, at = jax.lax.dynamic_update_slice_in_dim, state["length"]
    seen = {n: put(state[n], new[n], at, axis=1) for n in new}
    return seen, at, seen | {"length": at + length}


def slide(state: State, new: dict[str, Array]) -> tuple[State, State]:
    """The last tokens followed by a piece, to be seen; and the last of those, to be kept."""
    slots = state["k"].shape[1]
    seen = {n: jnp.concatenate([state[n], new[n]], axis=1) for n in new}
    return seen, {n: a[:, a.shape[1] - slots :] for n, a in seen.items()}


def bias_of(
    position: PositionScheme, heads: int, query: Int[Array, "B T"], key: Int[Array, "B S"]
) -> Bias | None:
    """What a scheme takes from the scores of queries and keys at these positions."""
    slopes = position.slopes(heads)
    return None if slopes is None else Bias(slopes, (query, key))


def segments_of(ctx: Context) -> Int[Array, "B T"]:
    """The document of each token; 0 where a row is one document."""
    return jnp.zeros_like(ctx.positions) if ctx.segments is None else ctx.segments


def ranks(ctx: Context, before: Int[Array, " B"] | None) -> Int[Array, "B T"]:
    """How many tokens of its document each token has before it, in this row or stream.

    Not its position: the first piece of a row may be the rest of a longer document. `before`: the
    rank of the piece's first token if it goes on with a document; None: 0.
    """
    index = jnp.arange(ctx.positions.shape[1], dtype=jnp.int32)
    on = index + (jnp.zeros_like(ctx.positions[:, :1]) if before is None else before[:, None])
    if ctx.starts is None:
        return on
    start = jax.lax.cummax(jnp.where(ctx.starts, index, -1), axis=1)
    return jnp.where(start < 0, on, index - start)
