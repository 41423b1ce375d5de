"""Cut the time axis into chunks: what every chunked recurrence begins and ends with."""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def split(x: Shaped[Array, "B T ..."], chunk: int) -> Shaped[Array, "B N C ..."]:
    """[B, T, ...] -> [B, N, C, ...], with zeros (False) after the last token."""
    pad = -x.shape[1] % chunk
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:])


def join(x: Shaped[Array, "B N C ..."], length: int) -> Shaped[Array, "B T ..."]:
    """The inverse of `split`: back to `length` tokens, the padding dropped."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
