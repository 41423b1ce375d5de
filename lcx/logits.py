"""The head's logits in pieces, so that those of a large batch never exist at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lcx.model import LM
from lcx.types import Params

LOGITS = 2**23
"""At most this many logits (fp32: 32 MB) exist at a time."""

OverLogits = Callable[..., Any]
"""`over_logits` of one model: (f, x, *per_token) -> f's results, [B T ...]."""


def over_logits(
    model: LM,
    params: Params,
    f: Callable[..., Any],
    x: Float[Array, "B T D"],
    *per_token: Array,
) -> Any:
    """`f(logits [B t vocab], *pieces [B t ...])`, an array [B t ...] or a tree of such, for all T.

    x: what the head reads; per_token: arrays [B T ...]. f must treat each token by itself: a large
    vocabulary is scored in pieces of consecutive tokens, each computed again in the backward pass.
    """

    # what pieces add to the head's gradient is summed in fp32, whatever it is stored in
    summed: Any = optax.tree.cast(params, jnp.float32)

    def piece(x: Float[Array, "B t D"], *cut: Array) -> Any:
        return f(model.logits(summed, x), *cut)

    batch, length = x.shape[:2]
    size = max(1, LOGITS // (batch * model.vocabulary))
    if size >= length:
        return piece(x, *per_token)

    def one(start: Int[Array, ""]) -> Any:
        # the last piece starts early enough to be whole
        at = jnp.minimum(start, length - size)
        cut = (jax.lax.dynamic_slice_in_dim(a, at, size, axis=1) for a in (x, *per_token))
        return piece(*cut)

    starts = jnp.arange(0, length, size)
    last = length - (len(starts) - 1) * size

    def join(pieces: Array) -> Array:
        early = jnp.moveaxis(pieces[:-1], 0, 1).reshape(batch, -1, *pieces.shape[3:])
        return jnp.concatenate([early, pieces[-1][:, size - last :]], axis=1)

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(one), starts))
