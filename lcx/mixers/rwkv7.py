"""RWKV-7's time mix."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lcx.dense import (
    head_width,
    linear,
    merge_heads,
    orthogonal,
    split_heads,
    uniform,
    vector,
    zeros,
)
from lcx.layers.norms import l2_normalise, standardise
from lcx.layers.rwkv import rwkv_depth, token_mix, token_shift
from lcx.ops import sums
from lcx.ops.delta_rule import diagonal_delta_rule
from lcx.ops.states import ShiftedState
from lcx.types import Context, Dims, Output, Params, State, absent_fields

MIN_LOG_DECAY = -(math.e**-0.5)
"""The log-decay of a token, of a decay of 1: exp(-exp(-0.5)) = 0.545 a token."""


class FirstValues(NamedTuple):
    """What the first RWKV-7 layer hands on to the later ones."""

    values: Float[Array, "B T D"]
    made: Bool[Array, ""]
    """False before the first layer."""

    @classmethod
    def initial(cls, x: Float[Array, "B T D"]) -> "FirstValues":
        """Before the first RWKV-7 layer."""
        return cls(jnp.zeros_like(x), jnp.zeros((), bool))


@dataclass(frozen=True)
class RWKV7:
    """RWKV-7's time mix, Goose (Peng et al. 2025, arXiv:2503.14456): a generalised delta rule.

    The state forgets by feature (at most by e^-0.6065 a token), and what it holds for a removal key
    is replaced at a learnt rate by feature. Values of later layers are mixed with those of the
    first. Belongs with LayerNorm blocks, `RWKV7ChannelMix` and a norm on the embedding. State: the
    last token, one K x K matrix per head. Fixed size.
    """

    heads: int = 4
    decay_rank: int | None = None
    """Of the low-rank map to the decay; None: 2.5 sqrt(D), in multiples of 32."""
    rate_rank: int | None = None
    """To the rate of replacement; None: as of the decay."""
    first_rank: int | None = None
    """To the share of the first layer's values; None: 1.7 sqrt(D), in multiples of 32."""
    gate_rank: int | None = None
    """To the gate; None: 5 sqrt(D), in multiples of 32."""

    def ranks(self, model: int) -> dict[str, int]:
        """Each rank, in a model of this width."""
        factors = {"decay_rank": 2.5, "rate_rank": 2.5, "first_rank": 1.7, "gate_rank": 5.0}
        usual = {n: max(32, round(f * model**0.5 / 32) * 32) for n, f in factors.items()}
        given = {n: getattr(self, n) for n in factors}
        return usual | {n: rank for n, rank in given.items() if rank is not None}

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        # As in the original code. Its first layer has no value mix; here it has one that nothing
        # reads, since the layers of a stack are alike.
        width, D = head_width("RWKV7", dims, self.heads), dims.model
        depth, to_end = rwkv_depth(dims)
        channel = jnp.arange(D, dtype=jnp.float32)
        line = channel / max(D - 1, 1) - 0.5
        zigzag = 2 * (channel % width) / max(width - 1, 1) - 1
        zigzag = zigzag * jnp.abs(zigzag)
        decay = -6 + 6 * (channel / max(D - 1, 1)) ** (1 + depth**0.3)
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}

        ranks = self.ranks(D)

        def low_rank(name: str) -> nnx.Dict:
            rank = ranks[f"{name}_rank"]
            gain = 0.1 * max(1.0, (rank / D) ** 0.5)
            return nnx.Dict(
                down=linear(dims, D, rank, ("embed", None), rngs, zeros),
                up=linear(dims, rank, D, (None, "heads"), rngs, orthogonal(gain)),
            )

        def square(bound: float) -> nnx.Linear:
            return linear(dims, D, D, ("embed", "heads"), rngs, uniform(bound * D**-0.5))

        return nnx.Dict(
            **{f"mix_{n}": vector(1 - token_mix(dims, p * to_end)) for n, p in powers.items()},
            decay=vector(decay + 0.5 + 2.5 * zigzag, rate=2.0),
            decay_low=low_rank("decay"),
            rate=vector(-0.19 + 0.3 * zigzag + 0.4 * line),
            rate_low=low_rank("rate"),
            first=vector(0.73 - 0.4 * line),
            first_low=low_rank("first"),
            gate_low=low_rank("gate"),
            removal=vector(0.71 - 0.1 * line),
            replaced=vector(jnp.full(D, 1.02)),
            bonus=vector(jnp.full((self.heads, width), -0.04)),
            receptance=square(0.5),
            key=square(0.05),
            value=square(0.5),
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

    @property
    def handed(self) -> type[FirstValues]:
        return FirstValues

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 9.0 * dims.model**2 / self.heads  # decay, read and replace, add, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        return self.share(params, x, ctx, state, FirstValues.initial(x))[0]

    def share(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        ctx: Context,
        state: State | None,
        handed: FirstValues,
    ) -> tuple[Output, FirstValues]:
        before = absent_fields(state, ShiftedState)
        begin = absent_fields(ctx.initial, ShiftedState)
        previous, last = token_shift(x, ctx, before.last, begin.last)
        step = previous - x
        xr, xw, xk, xv, xa, xg = (
            x + step * sums.spread(params[f"mix_{n}"][...], x) for n in "rwkvag"
        )

        def low_rank(name, x, between=lambda x: x):
            return params[name].up(between(params[name].down(x)))

        def parameter(name):
            return sums.spread(params[name][...], x)

        r, k, v = params.receptance(xr), params.key(xk), params.value(xv)
        first = jnp.where(handed.made, handed.values, v)
        v = v + (first - v) * jax.nn.sigmoid(parameter("first") + low_rank("first_low", xv))
        rate = jax.nn.sigmoid(parameter("rate") + low_rank("rate_low", xa))
        decay = low_rank("decay_low", xw, jnp.tanh).astype(jnp.float32) + params.decay[...]
        gate = low_rank("gate_low", xg, jax.nn.sigmoid)

        # keys are small at first, their squares far below the usual eps of 1e-6
        removal = l2_normalise(split_heads(k * parameter("removal"), self.heads), 1e-12)
        k = k * (1 + (rate - 1) * parameter("replaced"))
        r, k, v, rate = (split_heads(a, self.heads) for a in (r, k, v, rate))
        o, S = diagonal_delta_rule(
            *(r, k, v, -removal, removal * rate),
            split_heads(MIN_LOG_DECAY * jax.nn.sigmoid(decay), self.heads),
            min_log_decay=MIN_LOG_DECAY,
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        o = merge_heads(standardise(o, 64e-5)) * parameter("scale") + parameter("bias")
        own = (r * k * sums.spread(params.bonus[...], k)).sum(axis=-1, keepdims=True) * v
        y = params.out((o + merge_heads(own)) * gate)
        return Output(y, state and ShiftedState(last, S)), FirstValues(first, jnp.ones((), bool))
