"""A gated short convolution: the cheapest mixer there is, for what lies a few tokens back."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import linear, normal, residual, vector
from lcx.ops.short_conv import short_conv
from lcx.types import Context, Dims, Output, Params, State, absent_fields


class GatedConvState(NamedTuple):
    """The last inputs of the convolution."""

    conv: Float[Array, "B W-1 D"]


@dataclass(frozen=True)
class GatedConv:
    """c * conv(b * x), with gates b and c from the token itself (LFM2, Liquid AI 2025).

    The same as a layer of H3 (Fu et al. 2023) without its long filter. It sees `kernel_size`
    tokens, so it belongs under a mixer that sees further, as the first of a pattern. State: the
    last inputs of the convolution.
    """

    kernel_size: int = 4

    def __post_init__(self):
        if self.kernel_size < 1:
            raise ValueError(f"GatedConv: kernel_size must be at least 1, not {self.kernel_size}")

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        square = (dims.model, dims.model, ("embed", "heads"), rngs)
        shape, dtype = (self.kernel_size, dims.model), jnp.dtype(dims.policy.params)
        return nnx.Dict(
            b=linear(dims, *square),
            c=linear(dims, *square),
            x=linear(dims, *square),
            conv=vector(normal(self.kernel_size**-0.5)(rngs.params(), shape, dtype)),
            out=residual(dims, dims.model, ("heads", "embed"), rngs),
        )

    @property
    def learned_state(self) -> None:
        return None

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return GatedConvState(
            jnp.zeros((batch, self.kernel_size - 1, dims.model), dims.policy.compute)
        )

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 0.0  # a multiply-add for each parameter is all there is

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        y, last = short_conv(
            params.b(x) * params.x(x),
            params.conv[...],
            starts=ctx.starts,
            shards=ctx.shards,
            state=absent_fields(state, GatedConvState).conv,
            initial=absent_fields(ctx.initial, GatedConvState).conv,
        )
        return Output(params.out(params.c(x) * y), state and GatedConvState(last))
