"""Feature maps of linear attention: phi(q) . phi(k) in place of exp(q . k)."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FeatureMap = Literal["elu", "relu", "softmax", "taylor"]


def _softmax(x: Float[Array, "... K"]) -> Float[Array, "... F"]:
    return jnp.concatenate([jax.nn.softmax(x, axis=-1), jax.nn.softmax(-x, axis=-1)], axis=-1)


def _taylor(x: Float[Array, "... K"]) -> Float[Array, "... F"]:
    x = x * x.shape[-1] ** -0.25
    square = x[..., :, None] * x[..., None, :] * 0.5**0.5
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x, square.reshape(*x.shape[:-1], -1)], -1)


FEATURE_MAPS: dict[FeatureMap, Callable[[Float[Array, "... K"]], Float[Array, "... F"]]] = {
    "elu": lambda x: jax.nn.elu(x) + 1,
    "relu": jax.nn.relu,
    "softmax": _softmax,
    "taylor": _taylor,
}
"""What phi makes of a head's K features.

elu: elu(x) + 1 (Katharopoulos et al. 2020). relu: max(x, 0) (Kasai et al. 2021). softmax: those of
x and of -x (Zhang et al. 2024, Hedgehog; its linear map of each head is left to the projections).
taylor: phi(q) . phi(k) is exp(q . k / sqrt(K)) to the second order, in 1 + K + K^2 features (Arora
et al. 2024, Based); for narrow heads.
"""


def features(feature_map: FeatureMap, width: int) -> int:
    """F, how many features a head of `width` gets."""
    return {"softmax": 2 * width, "taylor": 1 + width + width**2}.get(feature_map, width)
