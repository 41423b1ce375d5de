"""Softmax attention of each query to the few blocks of keys that fit it best.

A block fits by the product of the query with the mean of the block's keys (MoBA, Lu et al. 2025,
arXiv:2502.13189, equation 6). The choice has no gradient: the weights of the chosen keys have.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lcx.kernels import FASTEST_THERE_IS, Kernels, chosen
from lcx.ops import sums
from lcx.ops.tiles import MASK_VALUE, Scoring, Segments

TILE = 64
"""Queries of one block that are attended together."""
SLAB = 512
"""Queries that choose together: so many scores of blocks exist at a time."""


def block_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B N C G K"],
    v: Float[Array, "B N C G V"],
    before: Int[Array, "B T"],
    *,
    top: int,
    softcap: float | None = None,
    segments: Segments | None = None,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """The output in q's dtype and lse, as `lcx.ops.attention.attention` has them.

    Args:
        before: query t may see the first before[t] of the N blocks.
        top: it sees the `top` best of them, or all if they are fewer; of two that fit equally, the
            earlier. Every query head chooses for itself.
        segments: the document of each query [B T] and of each block [B N].
        kernels: the plain form takes T x N x C memory; in the fast one queries are sorted by the
            block they chose, so that the work is T x top x C in matrix products.
    """
    B, T, H, K = q.shape
    G = k.shape[3]
    top = min(top, k.shape[1])
    grouped = q.reshape(B, T, G, H // G, K)
    scoring = Scoring(K**-0.5, None, softcap)
    blocks = _choose(grouped, k, before, top, segments)
    form = _reference if chosen("block_attention", kernels) == "reference" else _gathered
    o, lse = form(grouped, k, v, blocks, scoring)
    return o.reshape(B, T, H, -1).astype(q.dtype), lse.reshape(B, T, H)


def _choose(q, k, before, top, segments) -> Int[Array, "B T G R top"]:
    """The chosen blocks of each query; N where there are fewer."""
    T, N = q.shape[1], k.shape[1]
    means = lax.stop_gradient(k.astype(jnp.float32).mean(axis=2))

    def choose(part):
        q, before, document = part
        fit = jnp.einsum("btgrk,bngk->btgrn", q.astype(jnp.float32), means)
        seen = jnp.arange(N) < before[..., None]
        if segments is not None:
            seen &= document[..., None] == segments[1][:, None]
        fit, chosen = lax.top_k(jnp.where(seen[:, :, None, None], fit, -jnp.inf), top)
        return jnp.where(fit > -jnp.inf, chosen, N)

    document = before if segments is None else segments[0]
    queries = (lax.stop_gradient(q), before, document)
    if T <= SLAB:
        return choose(queries)
    slabs = jax.tree.map(_slabs, queries)
    chosen = jnp.moveaxis(lax.map(choose, slabs), 0, 1)
    return chosen.reshape(chosen.shape[0], -1, *chosen.shape[3:])[:, :T]


def _slabs(x):
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % SLAB)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, SLAB, *x.shape[2:]), 1, 0)


def _reference(q, k, v, chosen, scoring):
    (B, N, C), V = k.shape[:3], v.shape[-1]
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    seen = (chosen[..., None] == jnp.arange(N)).any(axis=-2)
    seen = jnp.repeat(seen, C, axis=-1)
    scores = scoring.scores(jnp.einsum("btgrk,bncgk->btgrnc", q, k))
    scores = jnp.where(seen, scores.reshape(*scores.shape[:4], -1), MASK_VALUE)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.where(seen, jnp.exp(scores - lse[..., None]), 0.0)
    values = jnp.moveaxis(v, 3, 1).reshape(B, -1, N * C, V)
    return jnp.einsum("btgrs,bgsv->btgrv", weights, values), jnp.where(
        seen.any(-1), lse, MASK_VALUE
    )


def _gathered(q, k, v, chosen, scoring):
    """One row and KV head after the other; its R query heads count as queries."""
    B, T, G, R, _ = q.shape

    def by_head(x, axis):
        return jnp.moveaxis(x, axis, 1).reshape(B * G, *x.shape[1:axis], *x.shape[axis + 1 :])

    q, chosen = (by_head(x, 2).reshape(B * G, T * R, -1) for x in (q, chosen))
    heads = (q, by_head(k, 3), by_head(v, 3), chosen)
    # computed again in the backward pass: what a head gathers is larger than what it is from
    one = jax.checkpoint(partial(_one_head, scoring))
    # one head after the other keeps memory small, and would gather rows that lie on many devices
    alone = jax.device_count() == 1
    o, lse = lax.map(lambda head: one(*head), heads) if alone else jax.vmap(one)(*heads)
    shape = B, G, T, R
    o, lse = o.reshape(*shape, -1), lse.reshape(shape)
    return jnp.moveaxis(o, 1, 2), jnp.moveaxis(lse, 1, 2)


def _one_head(
    scoring: Scoring,
    q: Float[Array, "Q K"],
    k: Float[Array, "N C K"],
    v: Float[Array, "N C V"],
    chosen: Int[Array, "Q top"],
) -> tuple[Float[Array, "Q V"], Float[Array, " Q"]]:
    """Pairs of a query and a block, sorted by block and cut into tiles of one block each."""
    (queries, top), N = chosen.shape, k.shape[0]
    pairs, tile = queries * top, min(TILE, queries)
    tiles = pairs // tile + min(N, pairs)  # a block fills whole tiles but for its last
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat)  # stable: by block, then by query
    count = jnp.zeros(N + 1, jnp.int32).at[flat].add(1)[:N]
    first = jnp.cumsum(count) - count
    needed = -(-count // tile)
    last = jnp.cumsum(needed)  # one past the tiles of each block
    block = flat[order]
    within = jnp.arange(pairs) - first.at[block].get(mode="clip")
    start = (last - needed).at[block].get(mode="clip") * tile
    slot = jnp.where(block < N, start + within, tiles * tile)  # past the end: no block chosen
    query = jnp.zeros(tiles * tile, jnp.int32).at[slot].set(order // top, mode="drop")
    of_tile = jnp.minimum(jnp.searchsorted(last, jnp.arange(tiles), side="right"), N - 1)

    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    q = sums.rows(q, query).reshape(tiles, tile, -1)
    k, v = (sums.rows(x, of_tile) for x in (k, v))
    scores = scoring.scores(product("nqk,nck->nqc", q, k))
    lse = jax.nn.logsumexp(scores, axis=-1)
    o = product("nqc,ncv->nqv", jnp.exp(scores - lse[..., None]).astype(v.dtype), v)

    # Back to the queries, and one softmax over the blocks that each has chosen.
    slot = jnp.zeros_like(slot).at[order].set(slot)
    real = (slot < tiles * tile).reshape(queries, top)
    slot = jnp.minimum(slot, tiles * tile - 1)
    lse = jnp.where(real, lse.reshape(-1)[slot].reshape(queries, top), MASK_VALUE)
    o = o.reshape(tiles * tile, -1)[slot].reshape(queries, top, -1)
    total = jax.nn.logsumexp(lse, axis=-1)
    share = jnp.where(real, jnp.exp(lse - total[:, None]), 0.0)
    return jnp.einsum("qt,qtv->qv", share, o), jnp.where(real.any(-1), total, MASK_VALUE)
