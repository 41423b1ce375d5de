"""The last few tokens, with or without the first few."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lcx.ops import sums
from lcx.ops.attention import attend_few, attention, merge
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Affine
from lcx.positions import PositionScheme
from lcx.sparsity.past import Entries, before_first, bias_of, empty, ranks, segments_of, slide
from lcx.sparsity.protocol import Attended, Request
from lcx.types import State


class Sinks(NamedTuple):
    """The first tokens of the document that is being read."""

    k: Float[Array, "B n G K"]
    """Without positions."""
    v: Float[Array, "B n G V"]
    rank: Int[Array, " B"]
    """How many tokens of the document there were."""


class WindowState(NamedTuple):
    """The last tokens; and the sinks, where there are some."""

    near: Entries
    sinks: Sinks | None


@dataclass(frozen=True)
class Window:
    """The last `size` tokens, itself included; and the document's first `sinks`, always.

    A window alone is Mistral's and Longformer's. Its alternation with the whole past, layer by
    layer, is GPT-3's: LM(pattern=(Block(SoftmaxAttention()), Block(SoftmaxAttention(sparsity=
    Window(256))))). The first tokens as attention sinks are StreamingLLM's (Xiao et al. 2023,
    arXiv:2309.17453): positions are counted within the cache, so that a sink is never further away
    than `sinks + size - 1` tokens. First means the first that the row or the stream has shown.
    State: the last size - 1 keys and values, and the sinks'.
    """

    size: int = 256
    sinks: int = 0

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"Window: size must be at least 1 (the token itself), not {self.size}")
        if self.sinks < 0:
            raise ValueError(f"Window: sinks cannot be negative, not {self.sinks}")

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        if self.sinks and position.decay(2) is not None:
            raise ValueError(
                f"Window: {type(position).__name__} decays with the tokens between, but sinks are "
                "read at positions within the cache"
            )

    def keys_seen(self, length: int) -> float:
        count = np.arange(1, length + 1)
        sinks = np.clip(count - self.size, 0, self.sinks)
        return float((np.minimum(count, self.size) + sinks).mean())

    def init_state(
        self, batch: int, capacity: int, groups: int, width: int, dtype: DTypeLike
    ) -> State:
        near = empty(batch, min(self.size - 1, capacity), groups, width, dtype)
        if not self.sinks:
            return WindowState(near, None)
        shape = (batch, self.sinks, groups, width)
        k, v = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
        return WindowState(near, Sinks(k, v, jnp.zeros(batch, jnp.int32)))

    def __call__(self, asked: Request) -> Attended:
        q, k, v, ctx, position, softcap, state = asked
        far, sinks = self._sinks(asked) if self.sinks else (None, None)
        q, k = position(q, k, ctx)
        new = Entries(k, v, ctx.positions, segments_of(ctx))
        alone = state is None and ctx.shards is None
        kept: Any = None
        if alone:
            seen, offset = new, 0
        else:
            past = before_first(self, asked).near
            seen, kept = slide(past, new, ctx.shards)
            offset = past.k.shape[1]
        one = alone and ctx.segments is None
        near = attention(
            *(q, seen.k, seen.v),
            offset=offset,
            window=self.size,
            softcap=softcap,
            segments=None if one else (new.segments, seen.segments),
            bias=bias_of(position, q.shape[2], ctx.positions, seen.positions),
            decay=position.decay(q.shape[3]),
            kernels=ctx.kernels,
        )
        o, lse = near if far is None else merge(near, far)
        return Attended(o, lse, state and WindowState(kept, sinks))

    def _sinks(
        self, asked: Request
    ) -> tuple[tuple[Float[Array, "B T H V"], Float[Array, "B T H"]], Sinks]:
        """Attention to the sinks that have left the window; and the last document's."""
        q, k, v, ctx, position, softcap, _ = asked
        B, T, n = *q.shape[:2], self.sinks
        before = before_first(self, asked).sinks
        rank, first = ranks(ctx, before.rank)
        within = jnp.minimum(rank, n + self.size - 1)
        q, k = position(q, k, ctx._replace(positions=within))
        old, new = (before.k, before.v), (k, v)
        i = jnp.arange(n, dtype=jnp.int32)
        start = jnp.arange(T, dtype=jnp.int32) - rank  # of the document; negative: before the piece
        if ctx.shards is not None:
            old = self._left_by_earlier_shards(old, new, start[:, -1:] + i, ctx)
        known = [jnp.concatenate(pair, axis=1) for pair in zip(old, new, strict=True)]

        # Where the i-th sink of each token's document lies: in this piece, behind the n old ones,
        # or among these, if its rank is below that of the piece's first token.
        at = n + start[..., None] + i
        at = jnp.where((start < 0)[..., None] & (i < first[:, None, None]), i, at)
        at = jnp.clip(at, 0, n + T - 1)
        seen = rank[..., None] - i >= self.size

        def take(x, at):
            return jax.vmap(sums.rows)(x, at)

        last = [take(x, at[:, -1]) for x in known]
        each = [x[:, None] for x in last] if ctx.starts is None else [take(x, at) for x in known]
        bias = bias_of(position, q.shape[2], within, jnp.broadcast_to(i, (B, n)))
        o = attend_few(q, each[0], each[1], seen, softcap=softcap, bias=bias)
        held = (i <= rank[:, -1:])[..., None, None]
        k, v = (jnp.where(held, x, 0) for x in last)
        return o, seqpar.last(Sinks(k, v, rank[:, -1] + 1), ctx.shards)

    def _left_by_earlier_shards(self, old, new, at, ctx) -> list[Float[Array, "B n G K"]]:
        """The sinks of the document that reaches into this shard.

        at: where the sinks of the shard's last document lie in it, or would lie.
        """
        T = ctx.positions.shape[1]
        here = (at >= 0) & (at < T)
        clears = here if ctx.starts is None else here | ctx.starts.any(axis=1, keepdims=True)
        put, stays = here[..., None, None], (~clears)[..., None, None]

        def left(old, new):
            own = jnp.take_along_axis(new, jnp.clip(at, 0, T - 1)[..., None, None], axis=1)
            here = Affine(stays.astype(own.dtype), jnp.where(put, own, 0))
            return seqpar.entering(here, old, ctx.shards)

        return [left(*pair) for pair in zip(old, new, strict=True)]
