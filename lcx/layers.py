"""Norms and channel mixers."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx import seqpar
from lcx.dense import linear, residual, uniform, vector, zeros
from lcx.types import Context, Dims, Params, State


@dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * scale, statistics in fp32 (Zhang and Sennrich 2019)."""

    eps: float = 1e-6

    def init(self, dims: Dims, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.RMSNorm(
            dims.model,
            epsilon=self.eps,
            dtype=jnp.dtype(dims.policy.compute),
            param_dtype=jnp.dtype(dims.policy.params),
            scale_metadata={"kind": "vector"},
            rngs=rngs,
        )


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / std * scale + bias, statistics in fp32 (Ba et al. 2016). RWKV's norm."""

    eps: float = 1e-5

    def init(self, dims: Dims, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.LayerNorm(
            dims.model,
            epsilon=self.eps,
            dtype=jnp.dtype(dims.policy.compute),
            param_dtype=jnp.dtype(dims.policy.params),
            use_fast_variance=False,
            scale_metadata={"kind": "vector"},
            bias_metadata={"kind": "vector"},
            rngs=rngs,
        )


Norm = RMSNorm | LayerNorm


def rms_normalise(x: Float[Array, "... V"], eps: float = 1e-6) -> Float[Array, "... V"]:
    """x / rms(x) along the last axis, without parameters; statistics in fp32."""
    square = jnp.square(x.astype(jnp.float32)).mean(axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(square + eps)).astype(x.dtype)


def l2_normalise(x: Float[Array, "... K"], eps: float = 1e-6) -> Float[Array, "... K"]:
    """x / |x| along the last axis, |x|^2 in fp32 with eps added."""
    square = jnp.square(x.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(square + eps)).astype(x.dtype)


def standardise(x: Float[Array, "... V"], eps: float) -> Float[Array, "... V"]:
    """(x - mean) / std along the last axis, without parameters; statistics in fp32.

    Over [B T H V] it is the group norm of RWKV, one group a head.
    """
    centred = x.astype(jnp.float32) - x.mean(axis=-1, keepdims=True, dtype=jnp.float32)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)


@dataclass(frozen=True)
class SwiGLU:
    """Gated MLP: (silu(x W_gate) * x W_up) W_down (Shazeer 2020). No state."""

    hidden: int | None = None
    """F; None: 8/3 of the width, rounded up to a multiple of 32."""

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        hidden = self.hidden or -(-8 * dims.model // (3 * 32)) * 32
        return nnx.Dict(
            gate=linear(dims, dims.model, hidden, ("embed", "mlp"), rngs),
            up=linear(dims, dims.model, hidden, ("embed", "mlp"), rngs),
            down=residual(dims, hidden, ("mlp", "embed"), rngs),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return {}

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> tuple[Float[Array, "B T D"], State | None]:
        return params.down(jax.nn.silu(params.gate(x)) * params.up(x)), state


@dataclass(frozen=True)
class MLP:
    """Two layers without biases: act(x W_up) W_down (Vaswani et al. 2017). No state."""

    hidden: int | None = None
    """F; None: four times the width."""
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """GPT-2's is gelu_tanh, Falcon's gelu."""

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        hidden = self.hidden or 4 * dims.model
        return nnx.Dict(
            up=linear(dims, dims.model, hidden, ("embed", "mlp"), rngs),
            down=residual(dims, hidden, ("mlp", "embed"), rngs),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return {}

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> tuple[Float[Array, "B T D"], State | None]:
        return params.down(_ACTIVATIONS[self.activation](params.up(x))), state


_ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def token_shift(
    x: Float[Array, "B T D"], ctx: Context, state: State | None
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """The token before each token, and the last of all, which the state keeps as `last`.

    Zero before a document's first.
    """
    before = jnp.zeros_like(x[:, :1]) if state is None else state["last"][:, None].astype(x.dtype)
    first = seqpar.halo(x, before, ctx.shards)
    previous = jnp.concatenate([first, x[:, :-1]], axis=1)
    if ctx.starts is not None:
        previous = jnp.where(ctx.starts[..., None], 0, previous)
    return previous, seqpar.last(x[:, -1], ctx.shards)


@dataclass(frozen=True)
class RWKVChannelMix:
    """RWKV-4's gated channel mix: sigmoid(r) * relu(k)^2 V, on token-shifted inputs.

    Peng et al. 2023, equations 17 to 18. RWKV-5's and 6's is the same function (6 writes 1 - mix
    for mix), 3.5 times as wide as the model. State: the last token.
    """

    hidden: int | None = None
    """F; None: four times the width."""

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        hidden = self.hidden or 4 * dims.model
        mix = token_mix(dims, 1 - dims.layer / dims.layers)
        return nnx.Dict(
            mix_k=vector(mix),
            mix_r=vector(mix),
            key=linear(dims, dims.model, hidden, ("embed", "mlp"), rngs),
            receptance=linear(dims, dims.model, dims.model, ("embed", None), rngs, zeros),
            value=linear(dims, hidden, dims.model, ("mlp", "embed"), rngs, zeros),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return {"last": jnp.zeros((batch, dims.model), dims.policy.compute)}

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> tuple[Float[Array, "B T D"], State | None]:
        previous, last = token_shift(x, ctx, state)
        k = params.key(blend(params.mix_k, x, previous))
        r = params.receptance(blend(params.mix_r, x, previous))
        y = jax.nn.sigmoid(r) * params.value(jnp.square(jax.nn.relu(k)))
        return y, state and {"last": last}


def token_mix(dims: Dims, power: float | Float[Array, ""]) -> Float[Array, " D"]:
    """(i / D)^power: how much of channel i comes from the current token, in RWKV-4's init."""
    channel = jnp.arange(dims.model, dtype=jnp.float32) / dims.model
    return (channel**power).astype(dims.policy.params)


def blend(
    mix: nnx.Param, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """mix of the current token, the rest of the one before (RWKV-4, 5; 6 and 7 turn it round)."""
    return previous + (x - previous) * mix[...].astype(x.dtype)


def rwkv_depth(dims: Dims) -> tuple[float | Float[Array, ""], float | Float[Array, ""]]:
    """Where a layer stands, as RWKV's initialisations have it: l / (L - 1), and 1 - l / L."""
    return dims.layer / max(dims.layers - 1, 1), 1 - dims.layer / dims.layers


def rwkv_decay(dims: Dims) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """Initial log(-log(decay)) and bonus of each channel, in RWKV-5 and 6; fp32."""
    depth, _ = rwkv_depth(dims)
    channel = jnp.arange(dims.model, dtype=jnp.float32)
    line = channel / max(dims.model - 1, 1)
    decay = -6 + 5 * line ** (0.7 + 1.3 * depth)
    return decay, depth * (1 - line) + 0.1 * ((channel + 1) % 3 - 1)


@dataclass(frozen=True)
class RWKV7ChannelMix:
    """RWKV-7's channel mix: relu(k)^2 V without a gate, on token-shifted inputs.

    Peng et al. 2025, equations 24 to 25. State: the last token.
    """

    hidden: int | None = None
    """F; None: four times the width."""

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        hidden = self.hidden or 4 * dims.model
        _, to_end = rwkv_depth(dims)
        small = uniform(0.5 * dims.model**-0.5)
        return nnx.Dict(
            mix=vector(1 - token_mix(dims, to_end**4)),
            key=linear(dims, dims.model, hidden, ("embed", "mlp"), rngs, small),
            value=linear(dims, hidden, dims.model, ("mlp", "embed"), rngs, zeros),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return {"last": jnp.zeros((batch, dims.model), dims.policy.compute)}

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> tuple[Float[Array, "B T D"], State | None]:
        previous, last = token_shift(x, ctx, state)
        k = params.key(x + (previous - x) * params.mix[...].astype(x.dtype))
        return params.value(jnp.square(jax.nn.relu(k))), state and {"last": last}


CHANNELS: dict[str, type] = {c.__name__: c for c in (SwiGLU, MLP, RWKVChannelMix, RWKV7ChannelMix)}
NORMS: dict[str, type] = {c.__name__: c for c in (RMSNorm, LayerNorm)}
