"""The last few tokens, with or without the first few."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lcx import seqpar
from lcx.ops.attention import attend_few, attention, merge
from lcx.positions import PositionScheme
from lcx.seqpar import Affine
from lcx.sparsity.past import bias_of, cache, entries, ranks, slide
from lcx.types import Context, State

Attended = tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]


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

    def init_state(self, batch: int, capacity: int, groups: int, width: int, dtype: Any) -> State:
        state = cache(batch, min(self.size - 1, capacity), groups, width, dtype)
        if self.sinks:
            shape = (batch, self.sinks, groups, width)
            state["sinks"] = {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
            state["rank"] = jnp.zeros(batch, jnp.int32)
        return state

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
        after = None
        sunk = None
        if self.sinks:
            sunk, sinks, rank = self._sinks(q, k, v, ctx, position, softcap, state)
            after = {"sinks": sinks, "rank": rank}
        q, k = position(q, k, ctx)
        new = entries(k, v, ctx)
        alone = state is None and ctx.shards is None
        if alone:
            seen, offset = new, 0
        else:
            B, T, G, K = k.shape
            whole = seqpar.length(T, ctx.shards)
            before = self.init_state(B, whole, G, K, k.dtype) if state is None else state
            seen, kept = slide({n: before[n] for n in new}, new, ctx.shards)
            after, offset = kept | (after or {}), before["k"].shape[1]
        one = alone and ctx.segments is None
        near = attention(
            *(q, seen["k"], seen["v"]),
            offset=offset,
            window=self.size,
            softcap=softcap,
            segments=None if one else (new["segments"], seen["segments"]),
            bias=bias_of(position, q.shape[2], ctx.positions, seen["positions"]),
            decay=position.decay(q.shape[3]),
        )
        o, lse = near if sunk is None else merge(near, sunk)
        return o, lse, None if state is None else after

    def _sinks(
        self, q, k, v, ctx, position, softcap, state
    ) -> tuple[Attended, State, Int[Array, " B"]]:
        """Attention to the sinks that have left the window; the last document's, and its rank."""
        B, T, n = *q.shape[:2], self.sinks
        rank, first = ranks(ctx, None if state is None else state["rank"])
        within = jnp.minimum(rank, n + self.size - 1)
        q, k = position(q, k, ctx._replace(positions=within))
        shape = (B, n, *k.shape[2:])
        old = {"k": jnp.zeros(shape, k.dtype), "v": jnp.zeros(shape, v.dtype)}
        old = old if state is None else state["sinks"]
        new = {"k": k, "v": v}
        i = jnp.arange(n, dtype=jnp.int32)
        start = jnp.arange(T, dtype=jnp.int32) - rank  # of the document; negative: before the piece
        if ctx.shards is not None:
            old = self._left_by_earlier_shards(old, new, start[:, -1:] + i, ctx)
        known = {name: jnp.concatenate([old[name], new[name]], axis=1) for name in new}

        # Where the i-th sink of each token's document lies: in this piece, behind the n old ones,
        # or among these, if its rank is below that of the piece's first token.
        at = n + start[..., None] + i
        at = jnp.where((start < 0)[..., None] & (i < first[:, None, None]), i, at)
        at = jnp.clip(at, 0, n + T - 1)
        seen = rank[..., None] - i >= self.size

        def take(name, at):
            flat = at.reshape(B, -1)[..., None, None]
            return jnp.take_along_axis(known[name], flat, axis=1).reshape(*at.shape, *k.shape[2:])

        last = {name: take(name, at[:, -1]) for name in known}
        if ctx.starts is None:
            each = {name: a[:, None] for name, a in last.items()}
        else:
            each = {name: take(name, at) for name in known}
        bias = bias_of(position, q.shape[2], within, jnp.broadcast_to(i, (B, n)))
        o = attend_few(q, each["k"], each["v"], seen, softcap=softcap, bias=bias)
        held = (i <= rank[:, -1:])[..., None, None]
        kept = {name: jnp.where(held, a, 0) for name, a in last.items()}
        return o, *seqpar.last((kept, rank[:, -1] + 1), ctx.shards)

    def _left_by_earlier_shards(self, old, new, at, ctx) -> State:
        """The sinks of the document that reaches into this shard.

        at: where the sinks of the shard's last document lie in it, or would lie.
        """
        T = ctx.positions.shape[1]
        here = (at >= 0) & (at < T)
        clears = here if ctx.starts is None else here | ctx.starts.any(axis=1, keepdims=True)
        put, stays = here[..., None, None], (~clears)[..., None, None]

        def left(name):
            own = jnp.take_along_axis(new[name], jnp.clip(at, 0, T - 1)[..., None, None], axis=1)
            here = Affine(stays.astype(own.dtype), jnp.where(put, own, 0))
            return seqpar.entering(here, old[name], ctx.shards)

        return {name: left(name) for name in new}
