"""The whole past, and the cache that holds it."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from lcx.ops.attention import attention
from lcx.ops.sharded_attention import sharded_attention
from lcx.positions import PositionScheme
from lcx.sparsity.past import Entries, GrowingCache, append, bias_of, by_head, empty, segments_of
from lcx.sparsity.protocol import Attended, Request
from lcx.types import State


@dataclass(frozen=True)
class Full:
    """Every token sees the whole past. State: the keys (with positions) and values of all of it."""

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        pass

    def keys_seen(self, length: int) -> float:
        return (length + 1) / 2

    def init_state(
        self, batch: int, capacity: int, groups: int, width: int, dtype: DTypeLike
    ) -> State:
        entries = by_head(empty(batch, capacity, groups, width, dtype))
        return GrowingCache(entries, jnp.zeros(batch, jnp.int32))

    def __call__(self, asked: Request) -> Attended:
        q, k, v, ctx, position, softcap, state = asked
        q, k = position(q, k, ctx)
        new = Entries(k, v, ctx.positions, segments_of(ctx))
        if state is None and ctx.shards is not None:
            o, lse = sharded_attention(
                *(q, k, v),
                shards=ctx.shards,
                softcap=softcap,
                segments=ctx.segments,
                slopes=position.slopes(q.shape[2]),
                positions=ctx.positions,
                decay=position.decay(q.shape[3]),
                kernels=ctx.kernels,
            )
            return Attended(o, lse, None)
        seen, offset, after = append(state, new, ctx.shards)
        k, v = seen.k, seen.v
        if state is not None:
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        one = state is None and ctx.segments is None
        o, lse = attention(
            *(q, k, v),
            offset=offset,
            softcap=softcap,
            segments=None if one else (new.segments, seen.segments),
            bias=bias_of(position, q.shape[2], ctx.positions, seen.positions),
            decay=position.decay(q.shape[3]),
            kernels=ctx.kernels,
        )
        return Attended(o, lse, after)
