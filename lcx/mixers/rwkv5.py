"""RWKV-5's time mix."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import head_width, linear, merge_heads, orthogonal, split_heads, vector, zeros
from lcx.layers.norms import standardise
from lcx.layers.rwkv import blend, rwkv_decay, rwkv_depth, token_mix, token_shift
from lcx.ops import sums
from lcx.ops.gated_linear_attention import gated_linear_attention
from lcx.ops.states import ShiftedState
from lcx.types import Context, Dims, Output, Params, State, absent_fields


@dataclass(frozen=True)
class RWKV5:
    """RWKV-5's time mix, Eagle (Peng et al. 2024, arXiv:2404.05892): a matrix of state per head.

    Every feature of a head's keys decays at a learnt, constant rate; the current token is read with
    a bonus in place of it. Belongs with LayerNorm blocks, `RWKVChannelMix` and a norm on the
    embedding. State: the last token, one K x K matrix per head. Fixed size.
    """

    heads: int = 4

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        # As in the original code: mixes that favour the present in deep layers, decays from slow
        # to fast over the channels, a bonus with a zigzag, a norm that is louder in deep layers.
        width = head_width("RWKV5", dims, self.heads)
        depth, to_end = rwkv_depth(dims)
        decay, bonus = rwkv_decay(dims)
        mix, half = token_mix(dims, to_end), token_mix(dims, 0.5 * to_end)
        square = (dims.model, dims.model, ("embed", "heads"), rngs)
        return nnx.Dict(
            mix_k=vector(mix),
            mix_v=vector((mix + 0.3 * depth).astype(mix.dtype)),
            mix_r=vector(half),
            mix_g=vector(jnp.copy(half)),
            decay=vector(decay.reshape(self.heads, width)),
            bonus=vector(bonus.reshape(self.heads, width)),
            receptance=linear(dims, *square, orthogonal()),
            key=linear(dims, *square, orthogonal(0.1)),
            value=linear(dims, *square, orthogonal()),
            gate=linear(dims, *square, orthogonal(0.1)),
            scale=vector(jnp.full(dims.model, (1 - to_end + 1 / dims.layers) ** 0.7)),
            bias=vector(jnp.zeros(dims.model)),
            out=linear(dims, dims.model, dims.model, ("heads", "embed"), rngs, zeros),
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
        r = split_heads(params.receptance(blend(params.mix_r, x, previous)), self.heads)
        k = split_heads(params.key(blend(params.mix_k, x, previous)), self.heads)
        v = split_heads(params.value(blend(params.mix_v, x, previous)), self.heads)
        gate = jax.nn.silu(params.gate(blend(params.mix_g, x, previous)))
        decay = -jnp.exp(params.decay[...].astype(jnp.float32))
        o, S = gated_linear_attention(
            *(r, k, v),
            jnp.broadcast_to(decay, (1, x.shape[1], *decay.shape)),
            bonus=params.bonus[...],
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        # the original divides by 8 before a norm of eps 1e-5: the same as this eps
        o = merge_heads(standardise(o, 64e-5))
        o = o * sums.spread(params.scale[...], o) + sums.spread(params.bias[...], o)
        return Output(params.out(o * gate), state and ShiftedState(last, S))
