"""Dropout."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lcx.types import Context


def dropped(x: Float[Array, "B T D"], rate: float, ctx: Context) -> Float[Array, "B T D"]:
    """x with a share `rate` of its features set to zero and the rest scaled to the same mean.

    Only where the context has keys: in training. Each token's own key says which, so that a token
    loses the same features however its batch is cut.
    """
    if not rate or ctx.keys is None:
        return x
    keep = jax.vmap(jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[-1:])))
    return jnp.where(keep(ctx.keys), x / (1 - rate), 0).astype(x.dtype)
