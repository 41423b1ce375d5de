"""Sparse Transformer's fixed pattern."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lcx.ops.attention import attention, merge
from lcx.positions import PositionScheme, encodes_only
from lcx.sparsity import blocks
from lcx.sparsity.past import before_first
from lcx.sparsity.protocol import Attended, Request
from lcx.types import State


@dataclass(frozen=True)
class Fixed:
    """The own block, and the last `summary` tokens of every earlier one.

    Child et al. 2019 (arXiv:1904.10509), section 4.2, both sets seen by every head: what lies
    further back is read from the tokens at a block's end, which have seen all of it. State: the
    last block - 1 keys and values, and those of every complete block's summary.
    """

    block: int = 128
    summary: int = 8

    def __post_init__(self):
        if not 1 <= self.summary <= self.block:
            raise ValueError(
                f"Fixed: summary must lie between 1 and block, not {self.summary} of {self.block}"
            )

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        encodes_only("Fixed", position)

    def keys_seen(self, length: int) -> float:
        rank = np.arange(length)
        return float((rank % self.block + 1 + rank // self.block * self.summary).mean())

    def init_state(
        self, batch: int, capacity: int, groups: int, width: int, dtype: DTypeLike
    ) -> State:
        return blocks.empty(batch, capacity, self.block, self.summary, groups, width, dtype)

    def __call__(self, asked: Request) -> Attended:
        encoded = asked.encoded()
        near, stored, after = blocks.attend(encoded, self.block, before_first(self, asked))
        store = after.store
        far = attention(
            encoded.q,
            *(a.reshape(a.shape[0], -1, *a.shape[3:]) for a in (store.k, store.v)),
            offset=stored.before * self.summary - 1,
            softcap=asked.softcap,
            segments=(stored.document, jnp.repeat(store.document, self.summary, axis=1)),
            kernels=asked.ctx.kernels,
        )
        o, lse = merge(near, far)
        return Attended(o, lse, asked.state and after)
