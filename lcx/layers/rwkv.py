"""What RWKV's layers share: the shift by a token, and first values by depth and channel."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.ops import sums
from lcx.parallel import seqpar
from lcx.types import Context, Dims


class LastToken(NamedTuple):
    """What a token shift keeps."""

    last: Float[Array, "B D"]


def token_shift(
    x: Float[Array, "B T D"],
    ctx: Context,
    before: Float[Array, "B D"] | None,
    initial: Float[Array, "1 D"] | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """The token before each token, and the last of all, which a state keeps.

    Before a document's first it is that of `initial`, or zero. before: the last token of the piece
    before; None: there is none.
    """
    before = jnp.zeros_like(x[:, 0]) if before is None else before.astype(x.dtype)
    first = seqpar.halo(x, before[:, None], ctx.shards)
    previous = jnp.concatenate([first, x[:, :-1]], axis=1)
    if ctx.starts is not None:
        found = jnp.zeros((), x.dtype) if initial is None else initial[:, None].astype(x.dtype)
        previous = jnp.where(ctx.starts[..., None], found, previous)
    return previous, seqpar.last(x[:, -1], ctx.shards)


def token_mix(dims: Dims, power: float | Float[Array, ""]) -> Float[Array, " D"]:
    """(i / D)^power: how much of channel i comes from the current token, in RWKV-4's init."""
    channel = jnp.arange(dims.model, dtype=jnp.float32) / dims.model
    return (channel**power).astype(dims.policy.params)


def blend(
    mix: nnx.Param, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """mix of the current token, the rest of the one before: RWKV-4's and 5's."""
    return previous + (x - previous) * sums.spread(mix[...], x)


def blend_back(
    mix: nnx.Param, x: Float[Array, "B T D"], previous: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """mix of the token before, the rest of the current one: RWKV-6's and 7's."""
    return x + (previous - x) * sums.spread(mix[...], x)


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
