"""Block-sparse attention that chooses its blocks."""

from dataclasses import dataclass

import numpy as np
from jax.typing import DTypeLike

from lcx.ops.attention import merge
from lcx.ops.block_attention import block_attention
from lcx.positions import PositionScheme, encodes_only
from lcx.sparsity import blocks
from lcx.sparsity.past import before_first
from lcx.sparsity.protocol import Attended, Request
from lcx.types import State


@dataclass(frozen=True)
class TopBlocks:
    """The own block, and of the earlier ones those whose mean key fits the query best.

    MoBA (Lu et al. 2025, arXiv:2502.13189), equations 2 to 6; its top-k is `top` + 1, for it counts
    the own block. Each head of each token chooses for itself. State: the keys and values of all
    tokens.
    """

    block: int = 64
    top: int = 2

    def __post_init__(self):
        if self.block < 1 or self.top < 1:
            raise ValueError(f"TopBlocks: block {self.block} and top {self.top} must be at least 1")

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        encodes_only("TopBlocks", position)

    def keys_seen(self, length: int) -> float:
        """A mean key, which is looked at and not read, counts as half a key."""
        rank = np.arange(length)
        earlier = rank // self.block
        chosen = np.minimum(earlier, self.top) * self.block
        return float((rank % self.block + 1 + chosen + earlier / 2).mean())

    def init_state(
        self, batch: int, capacity: int, groups: int, width: int, dtype: DTypeLike
    ) -> State:
        return blocks.empty(batch, capacity, self.block, self.block, groups, width, dtype)

    def __call__(self, asked: Request) -> Attended:
        encoded = asked.encoded()
        near, stored, after = blocks.attend(encoded, self.block, before_first(self, asked))
        store = after.store
        far = block_attention(
            *(encoded.q, store.k, store.v, stored.before),
            top=self.top,
            softcap=asked.softcap,
            segments=(stored.document, store.document),
            kernels=asked.ctx.kernels,
        )
        o, lse = merge(near, far)
        return Attended(o, lse, asked.state and after)
