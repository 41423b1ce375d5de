"""Lightning attention: linear attention whose heads forget at fixed rates, by layer."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, residual, split_heads, vector
from lcx.layers.norms import rms_normalise
from lcx.ops import sums
from lcx.ops.linear_attention import linear_attention
from lcx.ops.states import MatrixState
from lcx.types import Context, Dims, Output, Params, State, absent_fields


@dataclass(frozen=True)
class Lightning:
    """MiniMax-01's lightning attention (2025, arXiv:2501.08313; Qin et al. 2024).

    Queries, keys and values pass SiLU. Head h of H in layer l of L decays by
    exp(-2^(-8 (h + 1) / H) (1 - l / (L - 1))) a token: the last layer hardly forgets. The output is
    RMS-normalised over all heads, then gated by sigmoid. State: one K x K matrix per head. Fixed
    size.
    """

    heads: int = 4

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        head_width("Lightning", dims, self.heads)
        square = (dims.model, dims.model, ("embed", "heads"), rngs)
        head = jnp.arange(1, self.heads + 1, dtype=jnp.float32)
        depth = 1 - dims.layer / (dims.layers - 1 + 1e-5) + 1e-5
        return nnx.Dict(
            q=linear(dims, *square),
            k=linear(dims, *square),
            v=linear(dims, *square),
            gate=linear(dims, *square),
            log_rate=vector(jnp.log(2.0 ** (-8 * head / self.heads) * depth)),
            scale=vector(jnp.ones(dims.model, dims.policy.params)),
            out=residual(dims, dims.model, ("heads", "embed"), rngs),
        )

    @property
    def learned_state(self) -> str:
        return "S"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        width = dims.model // self.heads
        return MatrixState(jnp.zeros((batch, self.heads, width, width), jnp.float32))

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 5.0 * dims.model**2 / self.heads  # decay, add, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, MatrixState)
        begin = absent_fields(ctx.initial, MatrixState)
        q, k, v = (split_heads(jax.nn.silu(params[n](x)), self.heads) for n in "qkv")
        # kept with the parameters, because it belongs to the layer; never trained
        decay = -jnp.exp(jax.lax.stop_gradient(params.log_rate[...]))
        o, S = linear_attention(
            *(q, k, v),
            g=jnp.broadcast_to(decay, (1, x.shape[1], self.heads)),
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        o = merge_heads(o)
        o = rms_normalise(o) * sums.spread(params.scale[...], o)
        return Output(params.out(o * jax.nn.sigmoid(params.gate(x))), state and MatrixState(S))
