"""Gated linear attention: every feature of the key forgets at a rate of its own."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, residual, split_heads, vector
from lcx.layers.norms import rms_normalise
from lcx.ops import sums
from lcx.ops.gated_linear_attention import gated_linear_attention
from lcx.ops.states import MatrixState
from lcx.types import Context, Dims, Output, Params, State, absent_fields


@dataclass(frozen=True)
class GLA:
    """Gated linear attention (Yang et al. 2024, arXiv:2312.06635), section 4.4.

    Decay of a token and key feature: sigmoid(x W1 W2 + b)^(1/16). Keys are half as wide as values,
    so that the parameters are those of softmax attention with a gate. Each head's output is
    RMS-normalised and gated by swish. State: one K x V matrix per head. Fixed size.
    """

    heads: int = 4
    rank: int = 16
    """Between W1 and W2."""
    temperature: float = 16.0
    """The decay's root, tau in the paper."""

    def __post_init__(self):
        if self.rank < 1 or not self.temperature > 0:
            raise ValueError(
                f"GLA: rank {self.rank} and temperature {self.temperature} must be positive"
            )

    def _widths(self, dims: Dims) -> tuple[int, int]:
        values = head_width("GLA", dims, self.heads)
        return max(1, values // 2), values

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        keys = self.heads * self._widths(dims)[0]
        return nnx.Dict(
            q=linear(dims, dims.model, keys, ("embed", "heads"), rngs),
            k=linear(dims, dims.model, keys, ("embed", "heads"), rngs),
            v=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            gate=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            decay_in=linear(dims, dims.model, self.rank, ("embed", None), rngs),
            decay_out=linear(dims, self.rank, keys, (None, "heads"), rngs),
            decay_bias=vector(jnp.zeros(keys, jnp.float32)),
            scale=vector(jnp.ones(self._widths(dims)[1], dims.policy.params)),
            out=residual(dims, dims.model, ("heads", "embed"), rngs),
        )

    @property
    def learned_state(self) -> str:
        return "S"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return MatrixState(jnp.zeros((batch, self.heads, *self._widths(dims)), jnp.float32))

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        keys, values = self._widths(dims)
        return 5.0 * self.heads * keys * values  # decay, add, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, MatrixState)
        begin = absent_fields(ctx.initial, MatrixState)
        q, k, v = (split_heads(params[n](x), self.heads) for n in "qkv")
        logit = params.decay_out(params.decay_in(x)).astype(jnp.float32) + params.decay_bias[...]
        o, S = gated_linear_attention(
            q * q.shape[-1] ** -0.5,
            k,
            v,
            split_heads(jax.nn.log_sigmoid(logit) / self.temperature, self.heads),
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        o = merge_heads(rms_normalise(o) * sums.spread(params.scale[...], o))
        return Output(params.out(o * jax.nn.silu(params.gate(x))), state and MatrixState(S))
