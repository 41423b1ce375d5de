"""RWKV-4's time mix."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import linear, orthogonal, vector, zeros
from lcx.layers.rwkv import blend, token_mix, token_shift
from lcx.ops.wkv import WKVState, wkv4
from lcx.types import Context, Dims, Output, Params, State, absent_fields


class RWKV4State(NamedTuple):
    """The last token, and the running sums."""

    last: Float[Array, "B D"]
    wkv: WKVState


@dataclass(frozen=True)
class RWKV4:
    """RWKV-4's time mix (Peng et al. 2023): sigmoid(r) * wkv, on token-shifted inputs.

    Belongs with LayerNorm blocks, `RWKVChannelMix` and a norm on the embedding. State: the last
    token and the three running sums. Fixed size.
    """

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        # As in the original code: channels from slow to fast decay, spread wider in deep layers,
        # a bonus with a zigzag over channels, and mixes that favour the present in deep layers.
        depth = dims.layer / max(dims.layers - 1, 1)
        to_end = 1 - dims.layer / dims.layers
        channel = np.arange(dims.model)
        speed = -5 + 8 * (channel / max(dims.model - 1, 1)) ** (0.7 + 1.3 * depth)
        bonus = np.log(0.3) + 0.5 * ((channel + 1) % 3 - 1)
        mix = token_mix(dims, to_end)
        square = (dims.model, dims.model, ("embed", "heads"), rngs)
        return nnx.Dict(
            decay=vector(jnp.asarray(speed, jnp.float32)),
            bonus=vector(jnp.asarray(bonus, jnp.float32)),
            mix_k=vector(mix),
            mix_v=vector((mix + 0.3 * depth).astype(mix.dtype)),
            mix_r=vector(token_mix(dims, 0.5 * to_end)),
            key=linear(dims, *square, zeros),
            value=linear(dims, *square, orthogonal()),
            receptance=linear(dims, *square, zeros),
            out=linear(dims, dims.model, dims.model, ("heads", "embed"), rngs, zeros),
        )

    @property
    def learned_state(self) -> str:
        return "wkv.numerator"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return RWKV4State(
            last=jnp.zeros((batch, dims.model), dims.policy.compute),
            wkv=WKVState.empty(batch, dims.model),
        )

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 10.0 * dims.model  # decay, add and read, of a numerator and a denominator

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, RWKV4State)
        begin = absent_fields(ctx.initial, RWKV4State)
        previous, last = token_shift(x, ctx, before.last, begin.last)
        k = params.key(blend(params.mix_k, x, previous))
        v = params.value(blend(params.mix_v, x, previous))
        r = params.receptance(blend(params.mix_r, x, previous))
        o, wkv = wkv4(
            -jnp.exp(params.decay[...]),
            params.bonus[...],
            k,
            v,
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.wkv,
            initial=begin.wkv,
            kernels=ctx.kernels,
        )
        return Output(params.out(jax.nn.sigmoid(r) * o), state and RWKV4State(last, wkv))
