"""LongLoRA's shifted sparse attention."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from lcx.ops.attention import attention
from lcx.parallel import seqpar
from lcx.positions import PositionScheme
from lcx.sparsity.past import Entries, before_first, bias_of, empty, ranks, slide
from lcx.sparsity.protocol import Attended, Request
from lcx.types import State


class GroupsState(NamedTuple):
    """The last tokens, whose `segments` are the group of each in either half of the heads."""

    near: Entries
    rank: Int[Array, " B"]
    """How many tokens of the document there were."""
    read: Int[Array, " B"]
    """How many tokens of the row there were."""


@dataclass(frozen=True)
class ShiftedGroups:
    """Half of the heads see their group of tokens, the others groups shifted by half a group.

    S2-attention (Chen et al. 2023, arXiv:2309.12307), without the leak of its rolled form: the
    first half group stands alone. For training a model on long texts cheaply; evaluate it with the
    same parameters under `Full()`. The paper's group is a quarter of the training length. State:
    the last group - 1 keys and values, and the groups that they belong to.
    """

    group: int = 128

    def __post_init__(self):
        if self.group < 2 or self.group % 2:
            raise ValueError(f"ShiftedGroups: group must be even, not {self.group}")

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        if heads % 2 or (groups % 2 and groups > 1):
            raise ValueError(
                f"ShiftedGroups splits heads in halves: {heads} heads and {groups} kv_heads must "
                "be even (or a single kv_head)"
            )

    def keys_seen(self, length: int) -> float:
        rank = np.arange(length)
        shifted = np.minimum((rank + self.group // 2) % self.group, rank)
        return float((rank % self.group + shifted).mean() / 2 + 1)

    def init_state(
        self, batch: int, capacity: int, groups: int, width: int, dtype: DTypeLike
    ) -> State:
        near = empty(batch, min(self.group - 1, capacity), groups, width, dtype)
        near = near._replace(segments=jnp.full((*near.segments.shape, 2), -1, jnp.int32))
        return GroupsState(near, jnp.zeros(batch, jnp.int32), jnp.zeros(batch, jnp.int32))

    def __call__(self, asked: Request) -> Attended:
        q, k, v, ctx, position, softcap, state = asked
        length, shards = q.shape[1], ctx.shards
        before = before_first(self, asked)
        rank, _ = ranks(ctx, before.rank)
        begin = before.read[:, None] + seqpar.index(shards) * length
        index = jnp.arange(length, dtype=jnp.int32) + begin
        # A group is known by the index of its first token, which no other group has.
        shifted = jnp.minimum((rank + self.group // 2) % self.group, rank)
        own = index[..., None] - jnp.stack([rank % self.group, shifted], axis=-1)
        q, k = position(q, k, ctx)
        seen, after = Entries(k, v, ctx.positions, own), None
        if state is not None or shards is not None:
            seen, near = slide(before.near, seen, shards)
            read = before.read + seqpar.length(length, shards)
            after = state and GroupsState(near, seqpar.last(rank[:, -1] + 1, shards), read)

        bias = bias_of(position, q.shape[2], ctx.positions, seen.positions)

        def half(x, i):
            heads = x.shape[2] // 2
            return x if heads == 0 else x[:, :, i * heads : (i + 1) * heads]

        def half_of_bias(i):
            heads = q.shape[2] // 2
            return bias and bias._replace(slopes=bias.slopes[i * heads : (i + 1) * heads])

        halves = [
            attention(
                *(half(q, i), half(seen.k, i), half(seen.v, i)),
                offset=seen.k.shape[1] - q.shape[1],
                window=self.group,
                softcap=softcap,
                segments=(own[..., i], seen.segments[..., i]),
                bias=half_of_bias(i),
                decay=position.decay(q.shape[3]),
                kernels=ctx.kernels,
            )
            for i in range(2)
        ]
        o, lse = (jnp.concatenate(parts, axis=2) for parts in zip(*halves, strict=True))
        return Attended(o, lse, after)
