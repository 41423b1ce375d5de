"""What many tokens read: their gradients are sums over tokens, taken in fp32 whatever the dtype.

JAX adds gradients up in the dtype of what was read. In bf16 a sum of equal terms stops growing at
256 of them, since one more is less than half of its last digit.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rows(table: Float[Array, "n ..."], at: Int[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """table[at], of which several may read one row."""
    return table.astype(jnp.float32)[at].astype(table.dtype)


def spread(value: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A parameter for arithmetic with x: broadcast to its shape, in its dtype."""
    shape = jnp.broadcast_shapes(value.shape, x.shape)
    return jnp.broadcast_to(value.astype(jnp.float32), shape).astype(x.dtype)
