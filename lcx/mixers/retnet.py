"""Retention: linear attention whose heads forget at fixed rates."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, residual, split_heads
from lcx.layers import rms_normalise
from lcx.ops.linear_attention import linear_attention
from lcx.positions import PositionScheme, RoPE, only_marks
from lcx.types import Context, Dims, Params, State


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
        only_marks("RetNet", self.position)
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

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        width = dims.model // self.heads
        return {"S": jnp.zeros((batch, self.heads, width, self.expand * width), jnp.float32)}

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 5.0 * self.expand * dims.model**2 / self.heads  # decay, add, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> tuple[Float[Array, "B T D"], State | None]:
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
            state=None if state is None else state["S"],
        )
        y = jax.nn.silu(params.gate(x)) * merge_heads(rms_normalise(o))
        return params.out(y), state and {"S": S}
