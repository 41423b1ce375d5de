"""The whole past, with positions that a model trained on shorter texts has seen."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lcx.ops.attention import attention, merge
from lcx.ops.tiles import Index
from lcx.positions import PositionScheme, encodes_only
from lcx.sparsity.growing import Answer, append, growing, over
from lcx.sparsity.past import segments_of, unmarked
from lcx.sparsity.protocol import Attended, Request
from lcx.types import Context, State


class Unencoded(NamedTuple):
    """As `Entries`, of keys without positions; and the length of each one's text."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G V"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    lengths: Int[Array, "B S"]


@dataclass(frozen=True)
class SelfExtend:
    """Near tokens at their own distance, all others at distances that groups of tokens share.

    Jin et al. 2024 (arXiv:2401.01325), equations 3 and 4: distances below `neighbours` as they are,
    beyond of floor(i / group) + neighbours - floor(neighbours / group) - floor(j / group). For
    evaluating a model that was trained with `Full()`, without any fine-tune: trained on L tokens,
    it reads (L - neighbours) * group + neighbours. State: as of `Full`, but keys are kept without
    positions, beside the length of their text, and encoded each time that they are read.
    """

    neighbours: int = 256
    group: int = 8

    def __post_init__(self):
        for name in ("neighbours", "group"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"SelfExtend: {name} must be at least 1, not {getattr(self, name)}"
                )

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        encodes_only("SelfExtend", position)

    def keys_seen(self, length: int) -> float:
        return (length + 1) / 2

    def init_state(
        self, batch: int, capacity: int, groups: int, width: int, dtype: DTypeLike
    ) -> State:
        lengths = jnp.zeros((batch, capacity), jnp.int32)
        marks = (*unmarked(batch, capacity), lengths)
        return growing(groups, width, dtype, marks)

    def __call__(self, asked: Request) -> Attended:
        q, k, v, ctx, position, softcap, state = asked
        # keys are encoded when they are read, each by the length of its own text
        lengths = jnp.zeros_like(ctx.positions) if ctx.lengths is None else ctx.lengths
        new = Unencoded(k, v, ctx.positions, segments_of(ctx), lengths)
        parts, after = append(state, new, ctx.shards)

        def encode(x, positions, lengths):
            return position(x, x, Context(positions, lengths=lengths))[0]

        def attend(seen: Unencoded, offset: Index) -> Answer:
            def part(query, key, offset, window):
                return attention(
                    encode(q, query, new.lengths),
                    encode(seen.k, key, seen.lengths),
                    seen.v,
                    offset=offset,
                    window=window,
                    softcap=softcap,
                    segments=(new.segments, seen.segments),
                    kernels=ctx.kernels,
                )

            own, past = new.positions, seen.positions
            near = part(own, past, offset, self.neighbours)
            shift = self.neighbours - self.neighbours // self.group
            query, key = own // self.group + shift, past // self.group
            return merge(near, part(query, key, offset - self.neighbours, None))

        return Attended(*over(parts, attend), after)
