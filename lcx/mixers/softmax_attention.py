"""Softmax attention: multi-head, grouped or multi-query, over the keys that a sparsity shows."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, normal, residual, split_heads, vector
from lcx.positions import PositionScheme, RoPE
from lcx.sparsity import Full, Request, Sparsity
from lcx.types import Context, Dims, Output, Params, State


@dataclass(frozen=True)
class SoftmaxAttention:
    """Softmax attention (Vaswani et al. 2017), with KV heads shared by groups of query heads.

    Grouped: Ainslie et al. 2023; multi-query: Shazeer 2019. Every parameter is here and none in
    the sparsity, so a model trained under one runs under another. State: the sparsity's.
    """

    heads: int = 4
    kv_heads: int | None = None
    """None: as many as heads; 1: multi-query."""
    position: PositionScheme = RoPE()
    sparsity: Sparsity = Full()
    """Which keys a query sees; `Window(512)`: the last 512 tokens."""
    qk_norm: bool = False
    """RMS-normalise each head's queries and keys (Dehghani et al. 2023)."""
    sink_logit: bool = False
    """A learned score a head, one more term of the softmax's denominator (GPT-OSS, 2025)."""
    softcap: float | None = None
    """A bound on the scores: softcap * tanh(score / softcap) (Gemma 2, 2024)."""

    def __post_init__(self):
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"SoftmaxAttention: softcap must be positive, not {self.softcap}")

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        width = head_width("SoftmaxAttention", dims, self.heads)
        self.position.check(width)
        if self.groups < 1 or self.heads % self.groups:
            raise ValueError(
                f"SoftmaxAttention: {self.groups} kv_heads do not divide {self.heads} heads"
            )
        self.sparsity.check(self.heads, self.groups, self.position)
        params = nnx.Dict(
            q=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            k=linear(dims, dims.model, self.groups * width, ("embed", "kv_heads"), rngs),
            v=linear(dims, dims.model, self.groups * width, ("embed", "kv_heads"), rngs),
            out=residual(dims, dims.model, ("heads", "embed"), rngs),
        )
        if self.qk_norm:
            for name in ("q_norm", "k_norm"):
                params[name] = nnx.RMSNorm(
                    width,
                    dtype=jnp.dtype(dims.policy.compute),
                    param_dtype=jnp.dtype(dims.policy.params),
                    scale_metadata={"kind": "vector"},
                    rngs=rngs,
                )
        if self.sink_logit:  # N(0, 0.02^2), as GPT-OSS draws it
            sink = normal(0.02)(rngs.params(), (self.heads,), jnp.dtype(dims.policy.params))
            params["sink"] = vector(sink)
        return params

    @property
    def groups(self) -> int:
        """G, the number of KV heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        width, dtype = dims.model // self.heads, dims.policy.compute
        return self.sparsity.init_state(batch, capacity, self.groups, width, dtype)

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 4.0 * dims.model * self.sparsity.keys_seen(length)

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        counts = (self.heads, self.groups, self.groups)
        q, k, v = (split_heads(params[n](x), h) for n, h in zip("qkv", counts, strict=True))
        if self.qk_norm:
            q, k = params.q_norm(q), params.k_norm(k)
        asked = Request(q, k, v, ctx, self.position, self.softcap, state)
        o, lse, after = self.sparsity(asked)
        if self.sink_logit:
            # exp(sink) joins the denominator exp(lse)
            share = jax.nn.sigmoid(lse - params.sink[...].astype(jnp.float32))
            o = (share[..., None] * o).astype(o.dtype)
        return Output(params.out(merge_heads(o)), after)
