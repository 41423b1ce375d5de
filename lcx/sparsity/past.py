"""What sparsities keep of the past, and how they count within a document."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lcx.types import Context, State


def cache(batch: int, slots: int, groups: int, width: int, dtype: Any) -> State:
    """Room for the keys and values of `slots` tokens; an empty slot is in no document."""
    return {
        "k": jnp.zeros((batch, slots, groups, width), dtype),
        "v": jnp.zeros((batch, slots, groups, width), dtype),
        "segments": jnp.full((batch, slots), -1, jnp.int32),
    }


def append(state: State, k: Array, v: Array, segments: Array) -> State:
    """A growing cache, its `length` tokens followed by a piece.

    Raises ValueError for a piece that no cache of this size could hold.
    """
    slots = state["k"].shape[1]
    if k.shape[1] > slots:
        raise ValueError(f"a piece of {k.shape[1]} tokens exceeds the state's {slots}")
    put, at = jax.lax.dynamic_update_slice_in_dim, state["length"]
    new = {"k": k, "v": v, "segments": segments}
    return {n: put(state[n], new[n], at, axis=1) for n in new} | {"length": at + k.shape[1]}


def slide(state: State, k: Array, v: Array, segments: Array) -> tuple[State, State]:
    """The last tokens followed by a piece, to be seen; and the last of those, to be kept."""
    new, slots = {"k": k, "v": v, "segments": segments}, state["k"].shape[1]
    seen = {n: jnp.concatenate([state[n], new[n]], axis=1) for n in new}
    return seen, {n: a[:, a.shape[1] - slots :] for n, a in seen.items()}


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
