"""Cross-entropy of the next token, without ever holding the logits of a large batch at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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


def token_nll(
    model: LM, params: Params, x: Float[Array, "*n D"], targets: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Negative log-likelihood of each target in nats, and the log-normaliser; both fp32."""
    logits = model.logits(params, x)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - picked, log_z


def loss_sums(
    model: LM,
    params: Params,
    x: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> LossSums:
    """Sums over the tokens of weight 1; those of weight 0 are not scored.

    A large vocabulary is scored in pieces along T, each computed again in the backward pass.
    """

    def piece(x, targets, weights):
        nll, log_z = token_nll(model, params, x, targets)
        return LossSums((nll * weights).sum(), (jnp.square(log_z) * weights).sum(), weights.sum())

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
