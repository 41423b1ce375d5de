"""Small networks behind both sublayers of each block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.adapters.finding import norm_parameters
from lcx.dense import normal, vector
from lcx.layers.channels import ACTIVATIONS, Activation
from lcx.model import LM
from lcx.ops import sums
from lcx.types import Leaves, Params

PARTS = ("down", "down_bias", "up", "up_bias")


@dataclass(frozen=True)
class Adapter:
    """Bottlenecks: y + act(y W_down) W_up behind each sublayer (Houlsby et al. 2019, section 2.1).

    y is what the sublayer gives, before it is added to the residual stream. Both projections have a
    bias. W_down is drawn from N(0, 1/D), and W_up is 0 at first, so that the model begins as its
    base; the paper draws both near 0.
    """

    width: int = 64
    """Of the bottleneck."""
    activation: Activation = "gelu"
    norms: bool = True
    """Whether norms are trained, too, as in the paper."""

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"Adapter: width must be at least 1, not {self.width}")

    def trained(self, model: LM) -> frozenset[str]:
        return norm_parameters(model) if self.norms else frozenset()

    def init(self, model: LM, base: Params, rngs: nnx.Rngs) -> Leaves:
        dtype, D = jnp.dtype(model.policy.params), model.width
        down, up = (model.repeats, D, self.width), (model.repeats, self.width, D)
        added: Leaves = {}
        for place, block in enumerate(model.pattern):
            for name in block.sublayers:
                drawn = normal(D**-0.5)(rngs.params(), down, dtype)
                nothing = jnp.zeros(up, dtype)
                with nnx.use_eager_sharding(False):
                    made = (
                        nnx.Param(drawn, kind="matrix", out_sharding=("embed", None)),
                        vector(jnp.zeros((model.repeats, self.width), dtype)),
                        nnx.Param(nothing, kind="matrix", out_sharding=(None, "embed")),
                        vector(jnp.zeros((model.repeats, D), dtype)),
                    )
                under = f"blocks.{place}.{name}_adapter"
                added |= {f"{under}.{part}": leaf for part, leaf in zip(PARTS, made, strict=True)}
        return added

    def place(self, model: LM, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        def with_own(place: int, block: Params) -> Params:
            own = {}
            for name in ("mixer_adapter", "channel_adapter"):
                under = f"blocks.{place}.{name}"
                if f"{under}.down" in added:
                    parts = [added[f"{under}.{part}"] for part in PARTS]
                    own[name] = Bottleneck(parts, self.activation)
            return nnx.Dict(**dict(block.items()), **own)

        blocks = [with_own(place, block) for place, block in enumerate(params.blocks)]
        return nnx.Dict(**dict(params.items()) | {"blocks": nnx.List(blocks)})

    def merge(self, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        raise ValueError(
            "Adapter: no plain model computes what bottlenecks do, so they cannot be merged, and "
            "nothing can begin from them or be exported; LoRA can"
        )


class Bottleneck(nnx.Module):
    """y + act(y W_down + b) W_up + c, over [B T, D] (decision 14)."""

    def __init__(self, parts: Sequence[nnx.Variable], activation: Activation):
        self.down, self.down_bias, self.up, self.up_bias = parts
        self.activation = activation

    def __call__(self, y: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        rows = y.reshape(-1, y.shape[-1])
        inside = rows @ self.down[...].astype(y.dtype)
        inside += sums.spread(self.down_bias[...], inside)
        out = ACTIVATIONS[self.activation](inside) @ self.up[...].astype(y.dtype)
        out += sums.spread(self.up_bias[...], out)
        return y + out.reshape(y.shape)
