"""Rotate pairs of features by an angle that grows with the position; nothing about schemes.

Two layouts of the pairs are in use: halves (Llama) and neighbours (the paper). They are the same
function after permuting the rows of the q and k projections.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def angles(
    positions: Int[Array, "B T"], inv_freq: Float[np.ndarray, " P"] | Float[Array, "B T P"]
) -> Float[Array, "B T P"]:
    """Angles positions * inv_freq in radians; `inv_freq` is float64, or fp32 of each token's own.

    Reduced to [-pi, pi], and at most 2 pi * position / 2^32 beyond.

    The product in fp32 would be off by 2e-3 radians at position 65,536 and 4e-2 at a million. So
    the phase is counted in turns, as a fixed-point number of 32 bits whose integer product with
    the position wraps around just as a phase does; what 32 bits leave out of the frequency is
    added in fp32. The error stays below 1e-6 for every int32 position, of the frequency as given.
    """
    module = np if isinstance(inv_freq, np.ndarray) else jnp
    turns = inv_freq * (2.0**32 / (2 * np.pi))
    whole = module.floor(turns)
    phase = positions[..., None].astype(jnp.uint32) * (whole % 2.0**32).astype(jnp.uint32)
    rest = positions[..., None].astype(jnp.float32) * (turns - whole).astype(jnp.float32)
    return (phase.astype(jnp.int32).astype(jnp.float32) + rest) * (2 * np.pi * 2.0**-32)


def rotate(
    x: Float[Array, "B T H K"],
    angle: Float[Array, "B T P"],
    magnitude: Float[Array, "B T 1"] | float = 1.0,
    interleaved: bool = False,
) -> Float[Array, "B T H K"]:
    """Rotate the first 2P of K features pairwise by `angle`, and scale them by `magnitude`.

    Feature i is paired with i + P, or interleaved: 2i with 2i + 1. Features past 2P pass through
    (partial rotary). Trigonometry and product in fp32, cast last. RoFormer (Su et al. 2021),
    equation 34.
    """
    rotary, still = jnp.split(x, [2 * angle.shape[-1]], axis=-1)

    def pairs(first, second):
        if interleaved:
            return jnp.stack([first, second], axis=-1).reshape(*first.shape[:-1], -1)
        return jnp.concatenate([first, second], axis=-1)

    if interleaved:
        first, second = rotary[..., 0::2], rotary[..., 1::2]
    else:
        first, second = jnp.split(rotary, 2, axis=-1)
    cos = (magnitude * jnp.cos(angle))[:, :, None]
    sin = (magnitude * jnp.sin(angle))[:, :, None]
    # All features at once, beside the other of their pairs: XLA makes that one pass over x.
    rotated = rotary * pairs(cos, cos) + pairs(second, first) * pairs(-sin, sin)
    return jnp.concatenate([rotated.astype(x.dtype), still], axis=-1)
