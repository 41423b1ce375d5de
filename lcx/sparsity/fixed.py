"""Sparse Transformer's fixed pattern."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lcx.ops.attention import attention, merge
from lcx.positions import PositionScheme, only_marks
from lcx.seqpar import length
from lcx.sparsity import blocks
from lcx.types import Context, State


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
        only_marks("Fixed", position)

    def keys_seen(self, length: int) -> float:
        rank = np.arange(length)
        return float((rank % self.block + 1 + rank // self.block * self.summary).mean())

    def init_state(self, batch: int, capacity: int, groups: int, width: int, dtype: Any) -> State:
        return blocks.empty(batch, capacity, self.block, self.summary, groups, width, dtype)

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
        B, T, G, K = k.shape
        past = self.init_state(B, length(T, ctx.shards), G, K, k.dtype) if state is None else state
        near, stored, after = blocks.see(q, k, v, ctx, self.block, softcap, past)
        store = after["blocks"]
        far = attention(
            q,
            *(store[n].reshape(k.shape[0], -1, *k.shape[2:]) for n in ("k", "v")),
            offset=stored.before * self.summary - 1,
            softcap=softcap,
            segments=(stored.document, jnp.repeat(store["document"], self.summary, axis=1)),
        )
        o, lse = merge(near, far)
        return o, lse, None if state is None else after
