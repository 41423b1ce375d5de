"""The whole past, and the cache that holds it."""

from dataclasses import dataclass

from jax.typing import DTypeLike

from lcx.ops.attention import attention
from lcx.ops.sharded_attention import sharded_attention
from lcx.ops.tiles import Index
from lcx.positions import PositionScheme
from lcx.sparsity.growing import Answer, append, growing, over
from lcx.sparsity.past import Entries, bias_of, segments_of, unmarked
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
        return growing(groups, width, dtype, unmarked(batch, capacity))

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
        parts, after = append(state, new, ctx.shards)
        one = state is None and ctx.segments is None

        def attend(seen: Entries, offset: Index) -> Answer:
            return attention(
                *(q, seen.k, seen.v),
                offset=offset,
                softcap=softcap,
                segments=None if one else (new.segments, seen.segments),
                bias=bias_of(position, q.shape[2], ctx.positions, seen.positions),
                decay=position.decay(q.shape[3]),
                kernels=ctx.kernels,
            )

        return Attended(*over(parts, attend), after)
