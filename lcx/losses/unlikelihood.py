"""Unlikelihood of tokens that a document holds already."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lcx.logits import OverLogits
from lcx.losses.protocol import LossSums, OfTokens
from lcx.ops.documents import indices_and_beginnings, own_piece
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards
from lcx.protocols.measures import token_scores
from lcx.types import Batch


@dataclass(frozen=True)
class Unlikelihood(OfTokens):
    """Cross-entropy, and unlikelihood of the earlier tokens of a document, but for the target.

    Welleck et al. 2019 (arXiv:1908.04319), equations 4 and 5: to -log p(target) is added
    -alpha log(1 - p(c)) of each c of the set of tokens that the target is predicted from; a token
    that stands there twice counts once. No clamp is needed: log(1 - p) is exact for p near 1, and
    its gradient by any logit is at most 1.
    """

    alpha: float = 1.0
    """Weight of the unlikelihood. It is minimised, and not shown."""

    def __post_init__(self):
        if not self.alpha >= 0:
            raise ValueError(f"Unlikelihood: alpha cannot be negative, not {self.alpha}")

    def __call__(
        self,
        x: Float[Array, "B T D"],
        batch: Batch,
        over_logits: OverLogits,
        shards: Shards | None = None,
    ) -> LossSums:
        tokens = seqpar.gather(batch.tokens, shards)
        rows, length = tokens.shape
        index, first = indices_and_beginnings(batch.segments, length, rows, shards)
        places = own_piece(index, shards), own_piece(first, shards)
        nll, unlikely = over_logits(partial(_scores, tokens), x, batch.targets, *places)
        weights = batch.scored.astype(jnp.float32)
        nll = (nll * weights).sum()
        return LossSums(nll + self.alpha * (unlikely * weights).sum(), nll)


def _scores(
    tokens: Int[Array, "B T"],
    logits: Float[Array, "B t vocab"],
    targets: Int[Array, "B t"],
    index: Int[Array, "B t"],
    first: Int[Array, "B t"],
) -> tuple[Float[Array, "B t"], Float[Array, "B t"]]:
    """Negative log-likelihood and unlikelihood of each token of a piece.

    tokens: of whole rows. index: of each token of the piece in its row, one after the other; first:
    of its document's first token.
    """
    scores = token_scores(logits, targets)
    vocab = logits.shape[-1]
    candidates = _stood(tokens, index, vocab) >= first[..., None]
    candidates &= jnp.arange(vocab) != targets[..., None]
    each = jnp.where(candidates, log_one_minus_p(logits, scores.log_z), 0.0)
    return scores.nll, -each.sum(axis=-1)


def _stood(
    tokens: Int[Array, "B T"], index: Int[Array, "B t"], vocab: int
) -> Int[Array, "B t vocab"]:
    """At which index of the row each token of the vocabulary stood last, up to `index`; or -1."""
    everywhere = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    earlier = jnp.where(everywhere < index[:, :1], everywhere, -1)
    rows = jnp.arange(len(tokens))[:, None]
    before = jnp.full((len(tokens), vocab), -1, jnp.int32).at[rows, tokens].max(earlier)
    here = jnp.take_along_axis(tokens, index, axis=1)[..., None] == jnp.arange(vocab)
    return lax.cummax(jnp.where(here, index[..., None], before[:, None]), axis=1)


def log_one_minus_p(
    logits: Float[Array, "*n vocab"], log_z: Float[Array, "*n"]
) -> Float[Array, "*n vocab"]:
    """log(1 - p) of every token, exact for p near 0 and 1: there 1 - p in fp32 would be 1 or 0."""
    log_p = logits - log_z[..., None]
    # Of a token with p > 1/2, of which there is one at most, 1 - p is the share of all others.
    likely = log_p > -math.log(2)
    of_likely = jax.nn.logsumexp(jnp.where(likely, -jnp.inf, logits), axis=-1) - log_z
    of_others = jnp.log1p(-jnp.exp(jnp.where(likely, -1.0, log_p)))
    return jnp.where(likely, of_likely[..., None], of_others)
