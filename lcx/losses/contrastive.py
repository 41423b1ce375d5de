"""Contrast between the hidden states of a document."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lcx.logits import OverLogits
from lcx.losses.protocol import LossSums, OfTokens
from lcx.ops.documents import indices_and_beginnings, own_piece, totals
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards
from lcx.protocols.measures import token_scores
from lcx.types import Batch

TILE = 512
"""So many tokens are compared with so many at a time."""


@dataclass(frozen=True)
class Contrastive(OfTokens):
    """Cross-entropy, and contrast between what the head reads of different tokens.

    SimCTG, Su et al. 2022 (arXiv:2202.06417), equations 2 and 3, of each document: to the mean of
    -log p(target) is added `weight` times the mean of max(0, margin - 1 + cos(h_i, h_j)) over its
    ordered pairs of different tokens. Documents are averaged by their scored tokens, as
    cross-entropy is; one of a single token has no pair. Takes two products [T D] x [D T] and one
    [T T] x [T D] a document, in memory linear in T.
    """

    margin: float = 0.5
    """rho: pairs below a cosine of 1 - margin are left alone."""
    weight: float = 1.0
    """It is minimised, and not shown."""

    def __post_init__(self):
        if not 0 < self.margin <= 2:
            raise ValueError(f"Contrastive: margin must be in (0, 2], not {self.margin}")
        if not self.weight >= 0:
            raise ValueError(f"Contrastive: weight cannot be negative, not {self.weight}")

    def __call__(
        self,
        x: Float[Array, "B T D"],
        batch: Batch,
        over_logits: OverLogits,
        shards: Shards | None = None,
    ) -> LossSums:
        nll = over_logits(token_scores, x, batch.targets).nll
        nll = (nll * batch.scored).sum()
        real, scored = (
            seqpar.gather(a, shards).astype(jnp.int32) for a in (batch.real, batch.scored)
        )
        rows, length = real.shape
        index, first = indices_and_beginnings(batch.segments, length, rows, shards)
        size = totals(real, first).astype(jnp.float32)
        # a document's mean over n (n - 1) pairs counts as often as it has scored tokens
        weights = totals(scored, first) / jnp.maximum(size * (size - 1), 1)
        of_tokens = (own_piece(a, shards) for a in (weights, first, index))
        pairs = contrast(self.margin, shards, _unit(x), *of_tokens)
        return LossSums(nll + self.weight * pairs, nll)


def _unit(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Of length 1, in fp32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-20))  # whose slope is finite in fp32


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def contrast(
    margin: float,
    shards: Shards | None,
    u: Float[Array, "B t D"],
    weights: Float[Array, "B t"],
    first: Int[Array, "B t"],
    index: Int[Array, "B t"],
) -> Float[Array, ""]:
    """The sum of weights_i max(0, margin - 1 + u_i u_j) over pairs i != j of one document.

    Of this shard's i, and of the j of all shards. u: of length 1. first: the index of the first
    token of each token's document. index: in the whole row. Only u has a gradient.
    """
    return _contrast_forward(margin, shards, u, weights, first, index)[0]


class _Tokens(NamedTuple):
    u: Float[Array, "... D"]
    weights: Float[Array, "..."]
    first: Int[Array, "..."]
    index: Int[Array, "..."]


def _contrast_forward(margin, shards, u, weights, first, index):
    def hinges(queries: _Tokens, keys: _Tokens) -> Float[Array, "B q"]:
        return jnp.maximum(_excess(margin, queries, keys), 0).sum(axis=-1)

    tokens = _Tokens(u, weights, first, index)
    return (weights * _over_keys(hinges, tokens, shards)).sum(), tokens


def _contrast_backward(margin, shards, tokens: _Tokens, cotangent: Float[Array, ""]):
    def pulls(queries: _Tokens, keys: _Tokens) -> Float[Array, "B q D"]:
        # a pair counts twice: by the weight of the one, and by that of the other
        both = queries.weights[:, :, None] + keys.weights[:, None]
        counted = jnp.where(_excess(margin, queries, keys) > 0, both, 0.0)
        return jnp.einsum("bqk,bkd->bqd", counted, keys.u)

    weighted = tokens._replace(weights=cotangent * tokens.weights)
    # None: the zeros of what has no gradient
    return _over_keys(pulls, weighted, shards), None, None, None


contrast.defvjp(_contrast_forward, _contrast_backward)


def _excess(margin: float, queries: _Tokens, keys: _Tokens) -> Float[Array, "B q k"]:
    """margin - 1 + cos of each pair; 0 where it is of two documents, or one token twice."""
    same_document = queries.first[:, :, None] == keys.first[:, None]
    same_token = queries.index[:, :, None] == keys.index[:, None]
    cos = jnp.einsum("bqd,bkd->bqk", queries.u, keys.u)
    return jnp.where(same_document & ~same_token, cos + (margin - 1), 0.0)


def _over_keys(
    f: Callable[[_Tokens, _Tokens], Array], tokens: _Tokens, shards: Shards | None
) -> Float[Array, "B t ..."]:
    """The sum of f(queries, keys) over all keys of all shards, of each of this shard's tokens."""
    if shards is None:
        return _over_tiles(f, tokens, tokens)

    def hop(carry: tuple[Array, _Tokens], _: None):
        total, keys = carry
        following = seqpar.ring(keys, shards)  # sent while this is worked on
        return (total + _over_tiles(f, tokens, keys), following), None

    zero = jax.eval_shape(partial(_over_tiles, f), tokens, tokens)
    carry = jnp.zeros(zero.shape, zero.dtype), tokens
    return lax.scan(hop, carry, None, length=shards.count)[0][0]


def _over_tiles(
    f: Callable[[_Tokens, _Tokens], Array], queries: _Tokens, keys: _Tokens
) -> Float[Array, "B t ..."]:
    """The sum of f(tile of queries, tile of keys) over the tiles with a document in common."""
    length = queries.index.shape[1]
    q, k = _tiled(queries), _tiled(keys)

    def of_queries(given: tuple[_Tokens, Bool[Array, " n"]]) -> Array:
        tile, meet = given

        def add(total: Array, given: tuple[_Tokens, Bool[Array, ""]]):
            theirs, meets = given
            return lax.cond(meets, lambda: total + f(tile, theirs), lambda: total), None

        zero = jax.eval_shape(f, tile, tile)
        return lax.scan(add, jnp.zeros(zero.shape, zero.dtype), (k, meet))[0]

    out: Any = lax.map(of_queries, (q, _meet(q.first, k.first)))
    return jnp.moveaxis(out, 0, 1).reshape(len(queries.index), -1, *out.shape[3:])[:, :length]


def _tiled(tokens: _Tokens) -> Any:
    """Tiles [n B TILE ...]. What pads the last belongs to no document, -1, and weighs nothing."""
    length = tokens.index.shape[1]
    size = min(TILE, length)
    more = -length % size

    def cut(a: Array, fill: int) -> Array:
        a = jnp.pad(a, [(0, 0), (0, more)] + [(0, 0)] * (a.ndim - 2), constant_values=fill)
        return jnp.moveaxis(a.reshape(len(a), -1, size, *a.shape[2:]), 1, 0)

    return _Tokens(*map(cut, tokens, (0, 0, -1, -1)))


def _meet(q: Int[Array, "n B q"], k: Int[Array, "m B k"]) -> Bool[Array, "n m"]:
    """Which tiles have a document in common, in any row. A row's documents are in order."""
    lowest, highest = (pick(k, axis=-1)[None] for pick in (jnp.min, jnp.max))
    low, high = (pick(q, axis=-1)[:, None] for pick in (jnp.min, jnp.max))
    return ((low <= highest) & (lowest <= high)).any(axis=-1)
