"""Softmax attention: multi-head, grouped or multi-query, over the whole past or a window of it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, residual, split_heads
from lcx.ops.attention import attention
from lcx.positions import PositionScheme, RoPE
from lcx.types import Context, Dims, Params, State


@dataclass(frozen=True)
class SoftmaxAttention:
    """Softmax attention (Vaswani et al. 2017), with KV heads shared by groups of query heads.

    Grouped: Ainslie et al. 2023; multi-query: Shazeer 2019. State: rotated keys and values, of
    all past tokens or, under a window, of the last `window - 1`.
    """

    heads: int = 4
    kv_heads: int | None = None
    """None: as many as heads; 1: multi-query."""
    position: PositionScheme = RoPE()
    window: int | None = None
    """How many tokens a query sees, itself included; None: the whole past."""
    qk_norm: bool = False
    """RMS-normalise each head's queries and keys (Dehghani et al. 2023)."""

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        width = head_width("SoftmaxAttention", dims, self.heads)
        self.position.check(width)
        if self.groups < 1 or self.heads % self.groups:
            raise ValueError(
                f"SoftmaxAttention: {self.groups} kv_heads do not divide {self.heads} heads"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"SoftmaxAttention: window must be at least 1, not {self.window}")
        params = nnx.Dict(
            q=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            k=linear(dims, dims.model, self.groups * width, ("embed", "kv_heads"), rngs),
            v=linear(dims, dims.model, self.groups * width, ("embed", "kv_heads"), rngs),
            out=residual(dims, dims.model, ("heads", "embed"), rngs),
        )
        if self.qk_norm:
            for name in ("q_norm", "k_norm"):
                dtypes = {"dtype": dims.policy.compute, "param_dtype": dims.policy.params}
                params[name] = nnx.RMSNorm(width, rngs=rngs, **dtypes)
        return params

    @property
    def groups(self) -> int:
        """G, the number of KV heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        slots = capacity if self.window is None else min(self.window - 1, capacity)
        shape = (batch, slots, self.groups, dims.model // self.heads)
        state = {
            "k": jnp.zeros(shape, dims.policy.compute),
            "v": jnp.zeros(shape, dims.policy.compute),
            "segments": jnp.full((batch, slots), -1, jnp.int32),
        }
        if self.window is None:
            state["length"] = jnp.zeros((), jnp.int32)
        return state

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> tuple[Float[Array, "B T D"], State | None]:
        counts = (self.heads, self.groups, self.groups)
        q, k, v = (split_heads(params[n](x), h) for n, h in zip("qkv", counts, strict=True))
        if self.qk_norm:
            q, k = params.q_norm(q), params.k_norm(k)
        q, k = self.position(q, k, ctx.positions)
        if state is None:
            segments = None if ctx.segments is None else (ctx.segments, ctx.segments)
            o = attention(q, k, v, window=self.window, segments=segments)
            return params.out(merge_heads(o)), None
        segments = jnp.zeros_like(ctx.positions) if ctx.segments is None else ctx.segments
        keys, offset, state = self._remember(state, k, v, segments)
        o = attention(
            q,
            keys["k"],
            keys["v"],
            offset=offset,
            window=self.window,
            segments=(segments, keys["segments"]),
        )
        return params.out(merge_heads(o)), state

    def _remember(self, state, k, v, segments):
        """The keys that this piece may see, the place of its first among them, the new state."""
        new = {"k": k, "v": v, "segments": segments}
        slots = state["k"].shape[1]
        if self.window is not None:
            keys = {n: jnp.concatenate([state[n], new[n]], axis=1) for n in new}
            return keys, slots, {n: a[:, a.shape[1] - slots :] for n, a in keys.items()}
        if k.shape[1] > slots:
            raise ValueError(f"a piece of {k.shape[1]} tokens exceeds the state's {slots}")
        length = state["length"]
        keys = {
            n: jax.lax.dynamic_update_slice_in_dim(state[n], new[n], length, axis=1) for n in new
        }
        return keys, length, keys | {"length": length + k.shape[1]}
