"""Softmax attention: multi-head, grouped or multi-query, over the keys that a sparsity shows."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, normal, residual, split_heads, vector
from lcx.layers import Norm
from lcx.ops import sums
from lcx.ops.attention import attend_few, merge
from lcx.positions import PositionScheme, RoPE
from lcx.sparsity import Full, Request, Sparsity
from lcx.sparsity.past import bias_of
from lcx.types import Context, Dims, Output, Params, State


class VirtualKeys(NamedTuple):
    """Keys and values of n tokens that stand before every document: its `Context.initial`.

    Keys are as they meet queries, of which those with positions encode 0 to n - 1; the document's
    own positions follow. Every token sees all of them under any sparsity, at their true distance.
    """

    k: Float[Array, "1 n G K"]
    v: Float[Array, "1 n G V"]


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
    head_width: int | None = None
    """K; None: the model's width / heads."""
    biases: tuple[Literal["q", "k", "v", "out"], ...] = ()
    """Which projections have one."""
    qk_norm: Norm | None = None
    """Of each head's queries and keys (Dehghani et al. 2023); one scale for all heads."""
    scale: float | None = None
    """Factor of the scores; None: K ** -0.5."""
    gate: bool = False
    """Each feature of the output is gated by a sigmoid of its own (Qwen3-Next, 2025)."""
    sink_logit: bool = False
    """A learned score a head, one more term of the softmax's denominator (GPT-OSS, 2025)."""
    softcap: float | None = None
    """A bound on the scores: softcap * tanh(score / softcap) (Gemma 2, 2024)."""

    def __post_init__(self):
        for name in ("softcap", "scale", "head_width"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"SoftmaxAttention: {name} must be positive, not {value}")

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        width, groups = self.key_width(dims), self.groups
        self.position.check(width)
        if groups < 1 or self.heads % groups:
            raise ValueError(
                f"SoftmaxAttention: {groups} kv_heads do not divide {self.heads} heads"
            )
        self.sparsity.check(self.heads, groups, self.position)
        queries, keys, bias = self.heads * width, groups * width, self.biases
        axes = ("embed", "heads"), ("embed", "kv_heads")
        params = nnx.Dict(
            q=linear(dims, dims.model, queries, axes[0], rngs, bias="q" in bias),
            k=linear(dims, dims.model, keys, axes[1], rngs, bias="k" in bias),
            v=linear(dims, dims.model, keys, axes[1], rngs, bias="v" in bias),
            out=residual(dims, queries, ("heads", "embed"), rngs, "out" in bias),
        )
        if self.gate:
            params["gate"] = linear(dims, dims.model, queries, axes[0], rngs)
        if self.qk_norm:
            for name in ("q_norm", "k_norm"):
                params[name] = self.qk_norm.init(replace(dims, model=width), rngs)
        if self.sink_logit:  # N(0, 0.02^2), as GPT-OSS draws it
            sink = normal(0.02)(rngs.params(), (self.heads,), jnp.dtype(dims.policy.params))
            params["sink"] = vector(sink)
        return params

    @property
    def groups(self) -> int:
        """G, the number of KV heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def key_width(self, dims: Dims) -> int:
        """K. Raises ValueError where heads do not divide the model's width."""
        if self.head_width is not None and self.heads >= 1:
            return self.head_width
        return head_width("SoftmaxAttention", dims, self.heads)

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        width, dtype = self.key_width(dims), dims.policy.compute
        return self.sparsity.init_state(batch, capacity, self.groups, width, dtype)

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return self.key_flops(dims) * self.sparsity.keys_seen(length)

    def key_flops(self, dims: Dims) -> float:
        """FLOPs of a query's score and sum of one key, of all heads."""
        return 4.0 * self.heads * self.key_width(dims)

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        counts = (self.heads, self.groups, self.groups)
        q, k, v = (split_heads(params[n](x), h) for n, h in zip("qkv", counts, strict=True))
        if self.qk_norm:
            q, k = params.q_norm(q), params.k_norm(k)
        if self.scale is not None:  # sparsities scale by K ** -0.5
            q *= self.scale * q.shape[-1] ** 0.5
        asked = Request(q, k, v, ctx, self.position, self.softcap, state)
        o, lse, after = self.sparsity(asked)
        if ctx.initial is not None:
            o, lse = merge((o, lse), self._virtual(asked, ctx.initial))
        if self.sink_logit:
            # exp(sink) joins the denominator exp(lse)
            share = jax.nn.sigmoid(lse - params.sink[...].astype(jnp.float32))
            o = (share[..., None] * o).astype(o.dtype)
        o = merge_heads(o)
        if self.gate:
            o *= jax.nn.sigmoid(params.gate(x))
        return Output(params.out(o), after)

    def _virtual(
        self, asked: Request, there: VirtualKeys
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
        """Attention to the virtual keys alone."""
        q, k, ctx = asked.encoded().q, there.k, asked.ctx
        rows, count = q.shape[0], k.shape[1]
        at = jnp.arange(count, dtype=jnp.int32)
        if (decay := self.position.decay(q.shape[-1])) is not None:
            # both factors are at most 1: to the last virtual token, and from it on
            before = ctx.positions[..., None, None] - (count - 1)
            q = (q * jnp.exp(decay * before)).astype(q.dtype)
            k = (k * jnp.exp(decay * (count - 1 - at)[:, None, None])).astype(k.dtype)
        k, v = (
            sums.spread(a[:, None], jnp.empty((rows, 1, *a.shape[1:]), q.dtype))
            for a in (k, there.v)
        )
        return attend_few(
            *(q, k, v, jnp.ones((*q.shape[:2], count), bool)),
            softcap=asked.softcap,
            bias=bias_of(self.position, q.shape[2], ctx.positions, jnp.tile(at, (rows, 1))),
        )
