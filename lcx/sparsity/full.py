"""The whole past, and the cache that holds it."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lcx.ops.attention import attention
from lcx.ops.sharded_attention import sharded_attention
from lcx.positions import PositionScheme
from lcx.sparsity.past import append, bias_of, cache, entries
from lcx.types import Context, State


@dataclass(frozen=True)
class Full:
    """Every token sees the whole past. State: the keys (with positions) and values of all of it."""

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        pass

    def keys_seen(self, length: int) -> float:
        return (length + 1) / 2

    def init_state(self, batch: int, capacity: int, groups: int, width: int, dtype: Any) -> State:
        return cache(batch, capacity, groups, width, dtype) | {"length": jnp.zeros((), jnp.int32)}

    def __call__(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B T G K"],
        v: Float[Array, "B T G V"],
        ctx: Context,
        position: PositionScheme,
        softcap: float | None,
        state: State | None,
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"], State | None]:
        q, k = position(q, k, ctx)
        new = entries(k, v, ctx)
        if state is None and ctx.shards is not None:
            o, lse = sharded_attention(
                *(q, k, v),
                shards=ctx.shards,
                softcap=softcap,
                segments=ctx.segments,
                slopes=position.slopes(q.shape[2]),
                positions=ctx.positions,
                decay=position.decay(q.shape[3]),
            )
            return o, lse, None
        seen, offset, after = append(state, new, ctx.shards)
        one = state is None and ctx.segments is None
        o, lse = attention(
            *(q, seen["k"], seen["v"]),
            offset=offset,
            softcap=softcap,
            segments=None if one else (new["segments"], seen["segments"]),
            bias=bias_of(position, q.shape[2], ctx.positions, seen["positions"]),
            decay=position.decay(q.shape[3]),
        )
        return o, lse, after
