"""Cross-entropy of the next token, without ever holding the logits of a large batch at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lcx.model import LM
from lcx.types import Params

LOGITS = 2**23
"""At most this many logits (fp32: 32 MB) exist at a time."""


class LossSums(NamedTuple):
    """Sums over the scored tokens of a batch, in fp32."""

    nll: Float[Array, ""]
    """Nats."""
    z2: Float[Array, ""]
    """The squared logarithm of the softmax's normaliser, for a z-loss."""
    tokens: Float[Array, ""]


class TokenScores(NamedTuple):
    """What the head makes of each target; fp32."""

    nll: Float[Array, "*n"]
    """Negative log-likelihood, in nats."""
    log_z: Float[Array, "*n"]
    """The logarithm of the softmax's normaliser."""
    hit: Bool[Array, "*n"]
    """Whether no token was likelier."""


def token_scores(
    model: LM, params: Params, x: Float[Array, "*n D"], targets: Int[Array, "*n"]
) -> TokenScores:
    """Score each target from what the head reads before it."""
    logits = model.logits(params, x)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return TokenScores(log_z - picked, log_z, picked >= logits.max(axis=-1))


def loss_sums(
    model: LM,
    params: Params,
    x: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> LossSums:
    """Sums over the tokens of weight 1; those of weight 0 are not scored, whatever their target.

    A large vocabulary is scored in pieces along T, each computed again in the backward pass.
    """

    def piece(x, targets, weights):
        of = token_scores(model, params, x, targets)
        z2 = jnp.square(of.log_z)
        return LossSums((of.nll * weights).sum(), (z2 * weights).sum(), weights.sum())

    batch, length = targets.shape
    size = max(1, LOGITS // (batch * model.vocab))
    if size >= length:
        return piece(x, targets, weights)

    def add(total, start):
        # the last piece starts early enough to be whole, and does not score a token twice
        at = jnp.minimum(start, length - size)
        cut = [jax.lax.dynamic_slice_in_dim(a, at, size, axis=1) for a in (x, targets, weights)]
        cut[2] = jnp.where(at + jnp.arange(size) >= start, cut[2], 0)
        return jax.tree.map(jnp.add, total, piece(*cut)), None

    zero = LossSums(*(jnp.zeros((), jnp.float32),) * 3)
    return jax.lax.scan(jax.checkpoint(add), zero, jnp.arange(0, length, size))[0]
