"""Griffin's recurrent block around the real-gated linear recurrent unit."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from lcx.dense import head_width, linear, matrix, merge_heads, normal, residual, split_heads, vector
from lcx.ops import sums
from lcx.ops.lru import lru
from lcx.ops.short_conv import short_conv
from lcx.types import Context, Dims, Output, Params, State, absent_fields

SHARPNESS = 8.0
"""c in the paper's equation 3."""


class RGLRUState(NamedTuple):
    """The last inputs of the convolution, and the recurrence's value."""

    conv: Float[Array, "B W-1 D"]
    h: Float32[Array, "B D"]


@dataclass(frozen=True)
class RGLRU:
    """Griffin's recurrent block (De et al. 2024, arXiv:2402.19427), sections 2.3 and 2.4.

    h = a h + sqrt(1 - a^2) (i * x), log a = -8 softplus(Lambda) r, with gates r and i from x, which
    passes a short convolution first; h is gated by gelu. The gates' matrices are block-diagonal,
    one block a head. At position 0 the input enters whole. State: the last inputs of the
    convolution, h. Fixed size, no matrix.
    """

    heads: int = 4
    kernel_size: int = 4
    bias: bool = False
    """The projections to the two branches and out of them have one (RecurrentGemma)."""

    def __post_init__(self):
        if self.kernel_size < 1:
            raise ValueError(f"RGLRU: kernel_size must be at least 1, not {self.kernel_size}")

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        D, width, dtype = dims.model, head_width("RGLRU", dims, self.heads), dims.policy.params
        # As in the original code: with open gates, a^(1/8) lies in [0.9, 0.999], its square evenly
        square = jax.random.uniform(rngs.params(), (D,), minval=0.9**2, maxval=0.999**2)

        def small(*shape: int, inputs: int) -> Array:
            return normal(0.1 * inputs**-0.5)(rngs.params(), shape, jnp.dtype(dtype))

        def gate() -> nnx.Dict:
            return nnx.Dict(
                weight=matrix(small(self.heads, width, width, inputs=width)),
                bias=vector(jnp.zeros(D, dtype)),
            )

        return nnx.Dict(
            x=linear(dims, D, D, ("embed", "heads"), rngs, bias=self.bias),
            gate=linear(dims, D, D, ("embed", "heads"), rngs, bias=self.bias),
            conv=vector(small(self.kernel_size, D, inputs=self.kernel_size)),
            conv_bias=vector(jnp.zeros(D, dtype)),
            recurrence_gate=gate(),
            input_gate=gate(),
            rate=vector(jnp.log(jnp.expm1(-0.5 * jnp.log(square)))),
            out=residual(dims, D, ("heads", "embed"), rngs, self.bias),
        )

    @property
    def learned_state(self) -> str:
        return "h"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return RGLRUState(
            conv=jnp.zeros((batch, self.kernel_size - 1, dims.model), dims.policy.compute),
            h=jnp.zeros((batch, dims.model), jnp.float32),
        )

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 4.0 * dims.model  # the input's norm, decay, add

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, RGLRUState)
        begin = absent_fields(ctx.initial, RGLRUState)
        inputs, conv = short_conv(
            params.x(x),
            params.conv[...],
            params.conv_bias[...],
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.conv,
            initial=begin.conv,
        )

        def gate(name: str) -> Float[Array, "B T D"]:
            blocks = params[name].weight[...].astype(x.dtype)
            y = jnp.einsum("bthk,hkv->bthv", split_heads(inputs, self.heads), blocks)
            return jax.nn.sigmoid(merge_heads(y) + sums.spread(params[name].bias[...], x))

        rate = jax.nn.softplus(params.rate[...].astype(jnp.float32))
        g = -SHARPNESS * rate * gate("recurrence_gate").astype(jnp.float32)
        share = jnp.where((ctx.positions == 0)[..., None], 1.0, sqrt(-jnp.expm1(2 * g)))
        h, last = lru(
            share * (gate("input_gate") * inputs),
            g,
            starts=ctx.starts,
            state=before.h,
            initial=begin.h,
            shards=ctx.shards,
            kernels=ctx.kernels,
        )
        y = params.out(h.astype(x.dtype) * jax.nn.gelu(params.gate(x)))
        return Output(y, state and RGLRUState(conv, last))


@jax.custom_jvp
def sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root with a slope of at most 1000, as the original code has it: 0 has one too."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx * jax.lax.rsqrt(jnp.maximum(4 * x, 1e-6))
