"""Noise on embeddings."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lcx.ops.documents import beginnings, own_piece, totals
from lcx.parallel import seqpar
from lcx.types import Context


def noisy(x: Float[Array, "B T D"], alpha: float | None, ctx: Context) -> Float[Array, "B T D"]:
    """x + alpha / sqrt(L D) times uniform numbers in [-1, 1): NEFTune.

    Jain et al. 2023 (arXiv:2310.05914), algorithm 1; L is the number of tokens of the document, as
    far as it stands in the row. Only where the context has keys: in training. Each token's own key
    says which numbers, so that they are the same however a batch is cut.
    """
    if alpha is None or ctx.keys is None:
        return x
    if ctx.segments is None:
        size = jnp.full(x.shape[:2], seqpar.length(x.shape[1], ctx.shards), jnp.int32)
    else:
        first = beginnings(seqpar.gather(ctx.segments, ctx.shards))
        size = own_piece(totals(jnp.ones_like(first), first), ctx.shards)
    draw = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, x.shape[-1:], minval=-1.0)))
    bound = alpha * lax.rsqrt((size * x.shape[-1]).astype(jnp.float32))
    return (x + bound[..., None] * draw(ctx.keys)).astype(x.dtype)
