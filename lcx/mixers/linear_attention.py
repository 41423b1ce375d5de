"""Linear attention: a positive feature map in place of the softmax."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, residual, split_heads
from lcx.ops.linear_attention import linear_attention
from lcx.positions import NoPE, PositionScheme
from lcx.types import Context, Dims, Params, State


@dataclass(frozen=True)
class LinearAttention:
    """Linear attention with phi(x) = elu(x) + 1, normalised (Katharopoulos et al. 2020).

    State: per head, the sum of phi(k) [v, 1]^T, whose last column is the normaliser. Fixed size.
    A rotary scheme turns phi(q) and phi(k) above the fraction's bar and leaves the normaliser
    alone, so that it stays positive (Su et al. 2021, equation 19).
    """

    heads: int = 4
    position: PositionScheme = NoPE()

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        self.position.check(head_width("LinearAttention", dims, self.heads))
        return nnx.Dict(
            q=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            k=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            v=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            out=residual(dims, dims.model, ("heads", "embed"), rngs),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        width = dims.model // self.heads
        return {
            "sum": jnp.zeros((batch, self.heads, width, width), jnp.float32),
            "normaliser": jnp.zeros((batch, self.heads, width, 1), jnp.float32),
        }

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> tuple[Float[Array, "B T D"], State | None]:
        q, k, v = (split_heads(params[n](x), self.heads) for n in "qkv")
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        before = state or {"sum": None, "normaliser": None}
        one = jnp.ones_like(v[..., :1])
        z, normaliser = linear_attention(q, k, one, starts=ctx.starts, state=before["normaliser"])
        q, k = self.position(q, k, ctx.positions)
        o, total = linear_attention(q, k, v, starts=ctx.starts, state=before["sum"])
        y = params.out(merge_heads(o / (z + 1e-6)))
        return y, state and {"sum": total, "normaliser": normaliser}
