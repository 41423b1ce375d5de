"""Sparse Transformer's strided pattern."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from lcx.ops.attention import attention, merge
from lcx.ops.tiles import Index
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards
from lcx.positions import PositionScheme
from lcx.sparsity.past import Entries, bias_of, empty, fits, segments_of
from lcx.sparsity.protocol import Attended, Request
from lcx.types import State


class StridedState(NamedTuple):
    """Room for the tokens of a whole text, of which the first `used` are there.

    By token, where `GrowingCache` lies by head: columns and tiles of it are cut out to be read.
    """

    entries: Entries
    used: Int[Array, " B"]
    """The same in all rows, which are read side by side."""


@dataclass(frozen=True)
class Strided:
    """The last `stride` tokens, and every one at a distance that is a multiple of `stride`.

    Child et al. 2019 (arXiv:1904.10509), section 4.2, both sets seen by every head. A text of T
    tokens costs T (stride + T / stride) in place of T^2. State: the whole past, as of `Full`.
    """

    stride: int = 128

    def __post_init__(self):
        if self.stride < 1:
            raise ValueError(f"Strided: stride must be at least 1, not {self.stride}")

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        if position.decay(2) is not None:
            raise ValueError(
                f"Strided: {type(position).__name__} decays with the tokens between, but the "
                "columns skip most of them"
            )

    def keys_seen(self, length: int) -> float:
        rank = np.arange(length)
        return float((np.minimum(rank + 1, self.stride) + rank // self.stride).mean())

    def init_state(
        self, batch: int, capacity: int, groups: int, width: int, dtype: DTypeLike
    ) -> State:
        slots = -(-capacity // self.stride) * self.stride
        entries = empty(batch, slots, groups, width, dtype)
        return StridedState(entries, jnp.zeros(batch, jnp.int32))

    def __call__(self, asked: Request) -> Attended:
        q, k, v, ctx, position, softcap, state = asked
        length = q.shape[1]
        q, k = position(q, k, ctx)
        new = Entries(k, v, ctx.positions, segments_of(ctx))
        seen, offset, after = _append(state, new, ctx.shards)
        near = attention(
            *(q, seen.k, seen.v),
            offset=offset,
            window=self.stride,
            softcap=softcap,
            segments=(new.segments, seen.segments),
            bias=bias_of(position, q.shape[2], new.positions, seen.positions),
            kernels=ctx.kernels,
        )

        # Time as a grid of `stride` columns: a query sees the rows above it in its column.
        row, column = offset // self.stride, offset % self.stride
        whole = isinstance(offset, int)  # begins a row of the grid
        rows = -(-(length + (0 if whole else self.stride - 1)) // self.stride)

        def grid(x, rows, column):
            """[B, t, ...] from `column` of the first row on -> [B * stride, rows, ...]."""
            empty = jnp.zeros((x.shape[0], rows * self.stride, *x.shape[2:]), x.dtype)
            x = jax.lax.dynamic_update_slice_in_dim(empty, x, column, axis=1)
            x = x.reshape(x.shape[0], rows, self.stride, *x.shape[2:])
            return jnp.swapaxes(x, 1, 2).reshape(-1, rows, *x.shape[3:])

        def flat(x):
            x = jnp.swapaxes(x.reshape(-1, self.stride, *x.shape[1:]), 1, 2)
            x = x.reshape(x.shape[0], rows * self.stride, *x.shape[3:])
            return jax.lax.dynamic_slice_in_dim(x, column, length, axis=1)

        deep = -(-seen.k.shape[1] // self.stride)
        above = jax.tree.map(lambda a: grid(a, deep, 0), seen)
        segments, positions = (grid(a, rows, column) for a in (new.segments, new.positions))
        far = attention(
            *(grid(q, rows, column), above.k, above.v),
            offset=row - 1,
            softcap=softcap,
            segments=(segments, above.segments),
            bias=bias_of(position, q.shape[2], positions, above.positions),
            kernels=ctx.kernels,
        )
        o, lse = merge(near, (flat(far[0]), flat(far[1])))
        return Attended(o, lse, after)


def _append(
    state: StridedState | None, new: Entries, shards: Shards | None
) -> tuple[Entries, Index, StridedState | None]:
    """The past followed by a piece of all shards; the index of this shard's first; the state."""
    length = seqpar.length(new.k.shape[1], shards)
    begin = seqpar.index(shards) * new.k.shape[1]
    new = jax.tree.map(lambda a: seqpar.gather(a, shards), new)
    if state is None:
        return new, begin, None
    fits(length, state.entries.k.shape[1])
    at, put = state.used[0], jax.lax.dynamic_update_slice_in_dim
    seen = jax.tree.map(lambda old, piece: put(old, piece, at, 1), state.entries, new)
    return seen, at + begin, StridedState(seen, state.used + length)
