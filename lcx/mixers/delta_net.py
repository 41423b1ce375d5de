"""DeltaNet, and DeltaNet with a decay and an output gate."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import (
    head_width,
    linear,
    merge_heads,
    nearest_divisors,
    residual,
    split_heads,
    step_bias,
    uniform,
    vector,
)
from lcx.layers.norms import l2_normalise, rms_normalise
from lcx.ops import sums
from lcx.ops.delta_rule import delta_rule
from lcx.ops.short_conv import short_conv
from lcx.ops.states import ConvolvedState
from lcx.types import Context, Dims, Output, Params, State, absent_fields


@dataclass(frozen=True)
class DeltaNet:
    """DeltaNet (Yang et al. 2024, arXiv:2406.06484): what is written for a key replaces the old.

    Queries, keys and values pass a short convolution and SiLU; queries and keys get length 1; the
    rate of replacement is sigmoid(x W). Each head's output is RMS-normalised. State: the last
    kernel_size - 1 inputs of the convolution, one K x K matrix per head. Fixed size.
    """

    heads: int = 4
    kernel_size: int = 4

    def __post_init__(self):
        if self.kernel_size < 1:
            raise ValueError(f"DeltaNet: kernel_size must be at least 1, not {self.kernel_size}")

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        width = head_width("DeltaNet", dims, self.heads)
        return nnx.Dict(
            **_projections(dims, self.heads, self.kernel_size, dims.model, rngs),
            scale=vector(jnp.ones(width, dims.policy.params)),
            out=residual(dims, dims.model, ("heads", "embed"), rngs),
        )

    @property
    def learned_state(self) -> str:
        return "S"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        width = dims.model // self.heads
        return ConvolvedState(
            conv=jnp.zeros((batch, self.kernel_size - 1, 3 * dims.model), dims.policy.compute),
            S=jnp.zeros((batch, self.heads, width, width), jnp.float32),
        )

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 6.0 * dims.model**2 / self.heads  # read, replace, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, ConvolvedState)
        begin = absent_fields(ctx.initial, ConvolvedState)
        q, k, v, conv = _convolved(params, x, ctx, before, begin, self.heads, self.heads)
        o, S = delta_rule(
            *(q, k, v, jax.nn.sigmoid(params.beta(x).astype(jnp.float32))),
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        o = rms_normalise(o) * sums.spread(params.scale[...], o)
        return Output(params.out(merge_heads(o)), state and ConvolvedState(conv, S))


@dataclass(frozen=True)
class GatedDeltaNet:
    """Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464): a DeltaNet that also forgets.

    Log-decay of a token and head: -exp(A) softplus(x W + b). Keys are D wide, values `expand` times
    that, and each head's normalised output is gated by SiLU. Several heads of values may share one
    of keys and queries (Qwen3-Next, 2025). State: the last inputs of the convolution, one K x V
    matrix per head. Fixed size.
    """

    heads: int = 4
    """H, of values, rates and decays."""
    expand: int = 2
    kernel_size: int = 4
    key_heads: int | None = None
    """G, of keys and queries, each D / G wide; None: as many as heads."""

    def __post_init__(self):
        if self.expand < 1 or self.kernel_size < 1:
            raise ValueError(
                f"GatedDeltaNet: expand {self.expand} and kernel_size {self.kernel_size} must be "
                "at least 1"
            )

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        _, width = self._widths(dims)
        wide = self.expand * dims.model
        rate = jax.random.uniform(rngs.params(), (self.heads,), minval=1e-4, maxval=16.0)
        return nnx.Dict(
            **_projections(dims, self.heads, self.kernel_size, wide, rngs),
            gate=linear(dims, dims.model, wide, ("embed", "heads"), rngs),
            decay=linear(dims, dims.model, self.heads, ("embed", None), rngs),
            log_rate=vector(jnp.log(rate)),
            step_bias=vector(step_bias(rngs, self.heads)),
            scale=vector(jnp.ones(width, dims.policy.params)),
            out=residual(dims, wide, ("heads", "embed"), rngs),
        )

    @property
    def groups(self) -> int:
        """G, the number of heads of keys."""
        return self.heads if self.key_heads is None else self.key_heads

    def _widths(self, dims: Dims) -> tuple[int, int]:
        """K and V. Raises ValueError where heads do not divide what they are of."""
        heads, groups, wide = self.heads, self.groups, self.expand * dims.model
        if self.key_heads is not None and (groups < 1 or heads < 1 or heads % groups):
            raise ValueError(f"GatedDeltaNet: {groups} key_heads do not divide {heads} heads")
        keys = head_width("GatedDeltaNet", dims, groups)
        if wide % heads:
            raise ValueError(
                f"GatedDeltaNet: {heads} heads do not divide the width of values, {self.expand} * "
                f"{dims.model}; nearest that do: {nearest_divisors(wide, heads)}"
            )
        return keys, wide // heads

    @property
    def learned_state(self) -> str:
        return "S"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        keys, values = self._widths(dims)
        inputs = (2 + self.expand) * dims.model
        return ConvolvedState(
            conv=jnp.zeros((batch, self.kernel_size - 1, inputs), dims.policy.compute),
            S=jnp.zeros((batch, self.heads, keys, values), jnp.float32),
        )

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def key_head_count(self, dims: Dims) -> int:
        return self.groups

    def mixing_flops(self, dims: Dims, length: int) -> float:
        return 7.0 * self.expand * dims.model**2 / self.groups  # decay, read, replace, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before = absent_fields(state, ConvolvedState)
        begin = absent_fields(ctx.initial, ConvolvedState)
        q, k, v, conv = _convolved(params, x, ctx, before, begin, self.groups, self.heads)
        step = jax.nn.softplus(params.decay(x).astype(jnp.float32) + params.step_bias[...])
        o, S = delta_rule(
            *(q, k, v, jax.nn.sigmoid(params.beta(x).astype(jnp.float32))),
            g=-jnp.exp(params.log_rate[...]) * step,
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        o = merge_heads(rms_normalise(o) * sums.spread(params.scale[...], o))
        return Output(
            params.out(o * jax.nn.silu(params.gate(x))), state and ConvolvedState(conv, S)
        )


def _projections(dims: Dims, heads: int, kernel_size: int, values: int, rngs: nnx.Rngs) -> dict:
    inputs, dtype = 2 * dims.model + values, jnp.dtype(dims.policy.params)
    return {
        "q": linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
        "k": linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
        "v": linear(dims, dims.model, values, ("embed", "heads"), rngs),
        "conv": vector(uniform(kernel_size**-0.5)(rngs.params(), (kernel_size, inputs), dtype)),
        "beta": linear(dims, dims.model, heads, ("embed", None), rngs),
    }


def _convolved(params, x, ctx, before, begin, groups, heads):
    """Queries and keys of length 1 (queries times K^-1/2), values, and the convolution's state."""
    qkv = jnp.concatenate([params[n](x) for n in "qkv"], axis=-1)
    qkv, last = short_conv(
        qkv,
        params.conv[...],
        starts=ctx.starts,
        shards=ctx.shards,
        state=before.conv,
        initial=begin.conv,
    )
    width = x.shape[-1]
    q, k, v = jnp.split(jax.nn.silu(qkv), [width, 2 * width], axis=-1)
    q, k, v = split_heads(q, groups), split_heads(k, groups), split_heads(v, heads)
    return l2_normalise(q) * q.shape[-1] ** -0.5, l2_normalise(k), v, last
