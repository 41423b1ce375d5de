"""Retention: linear attention whose heads forget at fixed rates."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, residual, split_heads
from lcx.layers.norms import rms_normalise
from lcx.ops.linear_attention import linear_attention
from lcx.ops.states import MatrixState
from lcx.positions import PositionScheme, RoPE, encodes_only
from lcx.types import Context, Dims, Output, Params, State, absent_fields


@dataclass(frozen=True)
class RetNet:
    """Multi-scale retention (Sun et al. 2023): head h decays by 1 - 2^(-5-h) a token.

    Values are `expand` times as wide as keys; each head's output is RMS-normalised and gated by
    swish. The paper's rotation is RoPE with theta = 10000^(K / (K - 2)). State: one K x V matrix
    per head. Fixed size.
    """

    heads: int = 4
    expand: int = 2
    position: PositionScheme = RoPE()

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        encodes_only("RetNet", self.position)
        self.position.check(head_width("RetNet", dims, self.heads))
        if self.expand < 1:
            raise ValueError(f"RetNet: expand must be at least 1, not {self.expand}")
        wide = self.expand * dims.model
        return nnx.Dict(
            q=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            k=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            v=linear(dims, dims.model, wide, ("embed", "heads"), rngs),
            gate=linear(dims, dims.model, wide, ("embed", "heads"), rngs),
            out=residual(dims, wide, ("heads", "embed"), rngs),
        )

    @property
    def learned_state(self) -> str:
        return "S"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        width = dims.model // self.heads
        return MatrixState(jnp.zeros((batch, self.heads, width, self.expand * width), jnp.float32))

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 5.0 * self.expand * dims.model**2 / self.heads  # decay, add, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, MatrixState)
        begin = absent_fields(ctx.initial, MatrixState)
        q, k, v = (split_heads(params[n](x), self.heads) for n in "qkv")
        q, k = self.position(q, k, ctx)
        log_decay = np.log1p(-(2.0 ** (-5 - np.arange(self.heads)))).astype(np.float32)
        o, S = linear_attention(
            q * q.shape[-1] ** -0.5,
            k,
            v,
            g=jnp.broadcast_to(log_decay, (1, x.shape[1], self.heads)),
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        y = jax.nn.silu(params.gate(x)) * merge_heads(rms_normalise(o))
        return Output(params.out(y), state and MatrixState(S))
