"""RWKV-6's time mix."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import (
    head_width,
    linear,
    matrix,
    merge_heads,
    orthogonal,
    split_heads,
    uniform,
    vector,
    zeros,
)
from lcx.layers.norms import standardise
from lcx.layers.rwkv import rwkv_decay, rwkv_depth, token_mix, token_shift
from lcx.ops import sums
from lcx.ops.gated_linear_attention import gated_linear_attention
from lcx.ops.states import ShiftedState
from lcx.types import Context, Dims, Output, Params, State, absent_fields

MIXES = "wkvrg"


@dataclass(frozen=True)
class RWKV6:
    """RWKV-6's time mix, Finch (Peng et al. 2024, arXiv:2404.05892): RWKV-5's, by the data.

    How much of the token before is mixed in, and how fast each feature decays, depend on the token
    through low-rank maps. Belongs with LayerNorm blocks, `RWKV6ChannelMix` and a norm on the
    embedding. State: the last token, one K x K matrix per head. Fixed size.
    """

    heads: int = 4
    mix_rank: int = 32
    decay_rank: int = 64

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        # As in the original code; a mix is the share of the token before, where RWKV-4 and 5 count
        # that of the current one.
        width, D = head_width("RWKV6", dims, self.heads), dims.model
        depth, to_end = rwkv_depth(dims)
        decay, bonus = rwkv_decay(dims)
        mix, half = token_mix(dims, to_end), token_mix(dims, 0.5 * to_end)
        mixes = {"w": mix, "k": mix, "v": mix + 0.3 * depth, "r": half, "g": half}
        square = (D, D, ("embed", "heads"), rngs)
        small, dtype = uniform(0.01), jnp.dtype(dims.policy.params)
        return nnx.Dict(
            mix_x=vector(1 - mix),
            **{f"mix_{n}": vector((1 - mixes[n]).astype(dtype)) for n in MIXES},
            mix_in=linear(dims, D, 5 * self.mix_rank, ("embed", None), rngs, zeros),
            mix_out=matrix(small(rngs.params(), (5, self.mix_rank, D), dtype)),
            decay=vector(decay),
            decay_in=linear(dims, D, self.decay_rank, ("embed", None), rngs, zeros),
            decay_out=linear(dims, self.decay_rank, D, (None, "heads"), rngs, small),
            bonus=vector(bonus.reshape(self.heads, width)),
            receptance=linear(dims, *square, orthogonal()),
            key=linear(dims, *square, orthogonal(0.1)),
            value=linear(dims, *square, orthogonal()),
            gate=linear(dims, *square, orthogonal(0.1)),
            scale=vector(jnp.full(D, (1 - to_end + 1 / dims.layers) ** 0.7)),
            bias=vector(jnp.zeros(D)),
            out=linear(dims, D, D, ("heads", "embed"), rngs, zeros),
        )

    @property
    def learned_state(self) -> str:
        return "S"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        width = dims.model // self.heads
        return ShiftedState(
            last=jnp.zeros((batch, dims.model), dims.policy.compute),
            S=jnp.zeros((batch, self.heads, width, width), jnp.float32),
        )

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 5.0 * dims.model**2 / self.heads  # decay, add, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, ShiftedState)
        begin = absent_fields(ctx.initial, ShiftedState)
        previous, last = token_shift(x, ctx, before.last, begin.last)
        step = previous - x
        low = jnp.tanh(params.mix_in(x + step * sums.spread(params.mix_x[...], x)))
        low = low.reshape(*low.shape[:2], 5, self.mix_rank)
        more = jnp.einsum("btmr,mrd->btmd", low, params.mix_out[...].astype(x.dtype))
        mix = jnp.stack([params[f"mix_{n}"][...] for n in MIXES])
        mixed = x[:, :, None] + step[:, :, None] * (sums.spread(mix, more) + more)
        w, k, v, r, g = (mixed[:, :, i] for i in range(5))
        r = split_heads(params.receptance(r), self.heads)
        k = split_heads(params.key(k), self.heads)
        v = split_heads(params.value(v), self.heads)
        decay = params.decay_out(jnp.tanh(params.decay_in(w))).astype(jnp.float32)
        decay = -jnp.exp(params.decay[...].astype(jnp.float32) + decay)
        o, S = gated_linear_attention(
            *(r, k, v, split_heads(decay, self.heads)),
            bonus=params.bonus[...],
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        o = merge_heads(standardise(o, 64e-5))
        o = o * sums.spread(params.scale[...], o) + sums.spread(params.bias[...], o)
        y = params.out(o * jax.nn.silu(params.gate(g)))
        return Output(y, state and ShiftedState(last, S))
