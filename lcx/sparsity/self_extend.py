"""The whole past, with positions that a model trained on shorter texts has seen."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lcx.ops.attention import attention, merge
from lcx.positions import PositionScheme, only_marks
from lcx.sparsity.past import append, cache, entries
from lcx.types import Context, State


@dataclass(frozen=True)
class SelfExtend:
    """Near tokens at their own distance, all others at distances that groups of tokens share.

    Jin et al. 2024 (arXiv:2401.01325), equations 3 and 4: distances below `neighbours` as they are,
    beyond of floor(i / group) + neighbours - floor(neighbours / group) - floor(j / group). For
    evaluating a model that was trained with `Full()`, without any fine-tune: trained on L tokens,
    it reads (L - neighbours) * group + neighbours. State: as of `Full`, but keys are kept without
    positions, beside the length of their text, and marked each time that they are read.
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
        only_marks("SelfExtend", position)

    def keys_seen(self, length: int) -> float:
        return (length + 1) / 2

    def init_state(self, batch: int, capacity: int, groups: int, width: int, dtype: Any) -> State:
        lengths, length = jnp.zeros((batch, capacity), jnp.int32), jnp.zeros((), jnp.int32)
        state = cache(batch, capacity, groups, width, dtype)
        return state | {"lengths": lengths, "length": length}

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
        # keys are marked when they are read, each by the length of its own text
        lengths = jnp.zeros_like(ctx.positions) if ctx.lengths is None else ctx.lengths
        new = entries(k, v, ctx) | {"lengths": lengths}
        seen, offset, after = append(state, new, ctx.shards)

        def mark(x, positions, lengths):
            return position(x, x, Context(positions, lengths=lengths))[0]

        def part(query, key, offset, window):
            return attention(
                mark(q, query, new["lengths"]),
                mark(seen["k"], key, seen["lengths"]),
                seen["v"],
                offset=offset,
                window=window,
                softcap=softcap,
                segments=(new["segments"], seen["segments"]),
            )

        own, past = new["positions"], seen["positions"]
        near = part(own, past, offset, self.neighbours)
        shift = self.neighbours - self.neighbours // self.group
        far = part(own // self.group + shift, past // self.group, offset - self.neighbours, None)
        return *merge(near, far), after
