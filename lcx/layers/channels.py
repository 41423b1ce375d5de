"""Channel mixers: what a block does to each token by itself, or with the one before it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import linear, residual, uniform, vector, zeros
from lcx.layers.rwkv import LastToken, blend, blend_back, rwkv_depth, token_mix, token_shift
from lcx.ops.recomputing import recomputed
from lcx.types import Context, Dims, Output, Params, State, absent_fields

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclass(frozen=True)
class _Gated:
    """(act(x W_gate) * x W_up) W_down."""

    hidden: int | None = None
    """F; None: 8/3 of the width, rounded up to a multiple of 32."""
    bias: bool = False
    """Each of the three projections has one."""

    activation: ClassVar[Activation]

    def width(self, model: int) -> int:
        """F, in a model of this width."""
        return self.hidden or -(-8 * model // (3 * 32)) * 32

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        hidden = self.width(dims.model)
        axes = ("embed", "mlp")
        return nnx.Dict(
            gate=linear(dims, dims.model, hidden, axes, rngs, bias=self.bias),
            up=linear(dims, dims.model, hidden, axes, rngs, bias=self.bias),
            down=residual(dims, hidden, ("mlp", "embed"), rngs, self.bias),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return ()

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        return Output(params.down(self._gated(params.gate(x), params.up(x))), state)

    @partial(recomputed, static_argnums=0)
    def _gated(
        self, gate: Float[Array, "B T F"], up: Float[Array, "B T F"]
    ) -> Float[Array, "B T F"]:
        return ACTIVATIONS[self.activation](gate) * up


@dataclass(frozen=True)
class SwiGLU(_Gated):
    """Gated MLP: (silu(x W_gate) * x W_up) W_down (Shazeer 2020). No state."""

    activation: ClassVar[Activation] = "silu"


@dataclass(frozen=True)
class GeGLU(_Gated):
    """Gated MLP: (gelu(x W_gate) * x W_up) W_down (Shazeer 2020), Gemma's. No state.

    gelu as published with tanh.
    """

    activation: ClassVar[Activation] = "gelu_tanh"


@dataclass(frozen=True)
class MLP:
    """Two layers: act(x W_up) W_down (Vaswani et al. 2017). No state."""

    hidden: int | None = None
    """F; None: four times the width."""
    activation: Activation = "gelu"
    """GPT-2's is gelu_tanh, Falcon's gelu."""
    bias: bool = False
    """Both layers have one."""

    def width(self, model: int) -> int:
        """F, in a model of this width."""
        return self.hidden or 4 * model

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        hidden = self.width(dims.model)
        return nnx.Dict(
            up=linear(dims, dims.model, hidden, ("embed", "mlp"), rngs, bias=self.bias),
            down=residual(dims, hidden, ("mlp", "embed"), rngs, self.bias),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return ()

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        activation = recomputed(ACTIVATIONS[self.activation])
        return Output(params.down(activation(params.up(x))), state)


@recomputed
def _relu_squared(x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    return jnp.square(jax.nn.relu(x))


@dataclass(frozen=True)
class _RWKVGated(ABC):
    """sigmoid(r) * relu(k)^2 V, on token-shifted inputs."""

    hidden: int | None = None
    """F; None: four times the width, of RWKV-6 3.5 times."""

    widening: ClassVar[float]

    def width(self, model: int) -> int:
        """F, in a model of this width."""
        return self.hidden or int(self.widening * model)

    @abstractmethod
    def first_mix(self, dims: Dims) -> Float[Array, " D"]:
        """Both mixes before training."""

    @abstractmethod
    def mixed(
        self, mix: nnx.Param, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """Each token and the one before it."""

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        hidden, mix = self.width(dims.model), self.first_mix(dims)
        return nnx.Dict(
            mix_k=vector(mix),
            mix_r=vector(mix),
            key=linear(dims, dims.model, hidden, ("embed", "mlp"), rngs),
            receptance=linear(dims, dims.model, dims.model, ("embed", None), rngs, zeros),
            value=linear(dims, hidden, dims.model, ("mlp", "embed"), rngs, zeros),
        )

    @property
    def learned_state(self) -> None:
        return None

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return LastToken(jnp.zeros((batch, dims.model), dims.policy.compute))

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before, begin = (absent_fields(a, LastToken) for a in (state, ctx.initial))
        previous, last = token_shift(x, ctx, before.last, begin.last)
        k = params.key(self.mixed(params.mix_k, x, previous))
        r = params.receptance(self.mixed(params.mix_r, x, previous))
        y = jax.nn.sigmoid(r) * params.value(_relu_squared(k))
        return Output(y, state and LastToken(last))


@dataclass(frozen=True)
class RWKVChannelMix(_RWKVGated):
    """RWKV-4's gated channel mix: sigmoid(r) * relu(k)^2 V, on token-shifted inputs.

    Peng et al. 2023, equations 17 to 18. RWKV-5's is the same, 3.5 times as wide as the model.
    State: the last token.
    """

    widening: ClassVar[float] = 4

    def first_mix(self, dims: Dims) -> Float[Array, " D"]:
        return token_mix(dims, 1 - dims.layer / dims.layers)

    def mixed(
        self, mix: nnx.Param, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        return blend(mix, x, previous)


@dataclass(frozen=True)
class RWKV6ChannelMix(_RWKVGated):
    """RWKV-6's channel mix: RWKV-4's, with a mix that is the share of the token before.

    Peng et al. 2024 (arXiv:2404.05892), section 4. State: the last token.
    """

    widening: ClassVar[float] = 3.5

    def first_mix(self, dims: Dims) -> Float[Array, " D"]:
        return 1 - token_mix(dims, (1 - dims.layer / dims.layers) ** 3)

    def mixed(
        self, mix: nnx.Param, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        return blend_back(mix, x, previous)


@dataclass(frozen=True)
class RWKV7ChannelMix:
    """RWKV-7's channel mix: relu(k)^2 V without a gate, on token-shifted inputs.

    Peng et al. 2025, equations 24 to 25. State: the last token.
    """

    hidden: int | None = None
    """F; None: four times the width."""

    def width(self, model: int) -> int:
        """F, in a model of this width."""
        return self.hidden or 4 * model

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        hidden = self.width(dims.model)
        _, to_end = rwkv_depth(dims)
        small = uniform(0.5 * dims.model**-0.5)
        return nnx.Dict(
            mix=vector(1 - token_mix(dims, to_end**4)),
            key=linear(dims, dims.model, hidden, ("embed", "mlp"), rngs, small),
            value=linear(dims, hidden, dims.model, ("mlp", "embed"), rngs, zeros),
        )

    @property
    def learned_state(self) -> None:
        return None

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return LastToken(jnp.zeros((batch, dims.model), dims.policy.compute))

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        before, begin = (absent_fields(a, LastToken) for a in (state, ctx.initial))
        previous, last = token_shift(x, ctx, before.last, begin.last)
        k = params.key(blend_back(params.mix, x, previous))
        return Output(params.value(_relu_squared(k)), state and LastToken(last))


CHANNELS: dict[str, type] = {
    c.__name__: c for c in (SwiGLU, GeGLU, MLP, RWKVChannelMix, RWKV6ChannelMix, RWKV7ChannelMix)
}
