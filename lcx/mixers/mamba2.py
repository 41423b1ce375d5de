"""Mamba-2's mixer: a state space with one decay a head, chosen by the token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import (
    linear,
    merge_heads,
    nearest_divisors,
    residual,
    split_heads,
    step_bias,
    uniform,
    vector,
)
from lcx.layers.norms import rms_normalise
from lcx.ops import sums
from lcx.ops.linear_attention import linear_attention
from lcx.ops.short_conv import short_conv
from lcx.ops.states import ConvolvedState
from lcx.types import Context, Dims, Output, Params, State, absent_fields


@dataclass(frozen=True)
class Mamba2:
    """Mamba-2's structured state space duality (Dao and Gu 2024, arXiv:2405.21060), section 7.1.

    S = exp(-dt A) S + B (dt x)^T and y = C S + D x, for heads of x that share their B and C (keys
    and queries) with all of their group; x, B and C pass a short convolution and SiLU;
    dt = softplus(x W + b). The output is gated, then RMS-normalised, each group's by itself, as in
    the authors' code. State: the last kernel_size - 1 inputs of the convolution, one
    state x head_width matrix per head. Fixed size.
    """

    state: int = 128
    """K, the width of B and C."""
    head_width: int = 64
    """V; there are expand * D / V heads."""
    expand: int = 2
    kernel_size: int = 4
    groups: int = 1
    """G, each of H / G heads next to one another (section 7.2)."""

    def __post_init__(self):
        if min(self.state, self.head_width, self.expand, self.kernel_size, self.groups) < 1:
            raise ValueError(f"Mamba2: every number must be at least 1 in {self}")

    def head_count(self, dims: Dims) -> int:
        heads, rest = divmod(self.expand * dims.model, self.head_width)
        if rest:
            raise ValueError(
                f"Mamba2: heads of {self.head_width} do not divide the inner width "
                f"{self.expand} * {dims.model}"
            )
        if heads % self.groups:
            raise ValueError(
                f"Mamba2: {self.groups} groups do not divide {heads} heads; nearest that do: "
                f"{nearest_divisors(heads, self.groups)}"
            )
        return heads

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        inner, heads = self.expand * dims.model, self.head_count(dims)
        shared, dtype = self.groups * self.state, jnp.dtype(dims.policy.params)
        inputs = inner + 2 * shared
        tap = uniform(self.kernel_size**-0.5)
        rate = jax.random.uniform(rngs.params(), (heads,), minval=1.0, maxval=16.0)
        return nnx.Dict(
            x=linear(dims, dims.model, inner, ("embed", "heads"), rngs),
            b=linear(dims, dims.model, shared, ("embed", None), rngs),
            c=linear(dims, dims.model, shared, ("embed", None), rngs),
            gate=linear(dims, dims.model, inner, ("embed", "heads"), rngs),
            step=linear(dims, dims.model, heads, ("embed", None), rngs),
            conv=vector(tap(rngs.params(), (self.kernel_size, inputs), dtype)),
            conv_bias=vector(tap(rngs.params(), (inputs,), dtype)),
            log_rate=vector(jnp.log(rate)),
            step_bias=vector(step_bias(rngs, heads)),
            skip=vector(jnp.ones(heads)),
            scale=vector(jnp.ones(inner, dtype)),
            out=residual(dims, inner, ("heads", "embed"), rngs),
        )

    @property
    def learned_state(self) -> str:
        return "S"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        inner, heads = self.expand * dims.model, self.head_count(dims)
        inputs = inner + 2 * self.groups * self.state
        return ConvolvedState(
            conv=jnp.zeros((batch, self.kernel_size - 1, inputs), dims.policy.compute),
            S=jnp.zeros((batch, heads, self.state, self.head_width), jnp.float32),
        )

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 5.0 * self.state * self.expand * dims.model  # decay, add, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, ConvolvedState)
        begin = absent_fields(ctx.initial, ConvolvedState)
        xbc = jnp.concatenate([params[n](x) for n in "xbc"], axis=-1)
        xbc, conv = short_conv(
            xbc,
            params.conv[...],
            params.conv_bias[...],
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.conv,
            initial=begin.conv,
        )
        inner = self.expand * x.shape[-1]
        ends = [inner, inner + self.groups * self.state]
        v, k, q = jnp.split(jax.nn.silu(xbc), ends, axis=-1)
        v = v.reshape(*v.shape[:2], -1, self.head_width)
        step = jax.nn.softplus(params.step(x).astype(jnp.float32) + params.step_bias[...])
        o, S = linear_attention(
            split_heads(q, self.groups),
            split_heads(k, self.groups),
            v * step[..., None].astype(v.dtype),
            g=-jnp.exp(params.log_rate[...]) * step,
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        o = o + v * sums.spread(params.skip[...][:, None], v)
        o = merge_heads(o) * jax.nn.silu(params.gate(x))
        o = merge_heads(rms_normalise(split_heads(o, self.groups), 1e-5))
        y = params.out(o * sums.spread(params.scale[...], o))
        return Output(y, state and ConvolvedState(conv, S))
