"""The blockwise form of softmax attention: memory linear in the length.

It visits tiles of scores with the running max and sum of Milakov and Gimelshein
(arXiv:1805.02867), saves only the output and its logsumexp, and recomputes each tile in the
backward pass (Rabe and Staats, arXiv:2112.05682; Dao et al., arXiv:2205.14135, algorithms 1 and
4). Tiles that causality or the window hide whole are not visited, so a window W costs O(T W), and
a cache costs what it holds, not what it could.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lcx.ops.tiles import (
    MASK_VALUE,
    Index,
    Marks,
    Offset,
    Plan,
    Positions,
    Scoring,
    Segments,
    Tiles,
    Tiling,
    put,
    take,
)

EMPTY = -MASK_VALUE
"""In this file, the logsumexp of a query without keys: exp(score - it) is 0."""


def blockwise(
    q: Float[Array, "B T G R K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    offset: Offset,
    scoring: Scoring,
    segments: Segments | None,
    positions: Positions | None = None,
    tiling: Tiling | None = None,
) -> tuple[Float[Array, "B T G R V"], Float[Array, "B T G R"]]:
    """Output in q's dtype and logsumexp, as `lcx.ops.attention.attention` has them."""
    B, T, G, R, _ = q.shape
    tiling = tiling or Tiling.of(B, T, k.shape[1], G * R)
    static, traced, own = None, None, None
    if isinstance(offset, int):
        static = offset
    elif offset.ndim < 2:
        traced = offset
    else:
        own = offset

    def row(q, k, v, marks, own):
        first = traced if own is None else own
        return _attend(Plan(scoring, static, tiling), first, q, k, v, marks)

    rows = q, k, v, Marks(segments, positions), own
    if tiling.rows == B:
        o, lse = jax.vmap(row)(*rows)
    else:
        o, lse = lax.map(lambda x: row(*x), rows, batch_size=tiling.rows)
    lse = jnp.moveaxis(lse, -1, 1)
    return o, jnp.where(lse == EMPTY, MASK_VALUE, lse)


# Queries may see their keys in several calls, each of which goes on from the results of the one
# before: from an output and a logsumexp, and from the sums that become gradients.


def nothing_seen(q: Float[Array, "B T G R K"], V: int) -> tuple[Array, Array]:
    """The (o, lse) of queries that have seen no key yet; o in fp32, as sums should be."""
    B, T, G, R, _ = q.shape
    o = jnp.zeros_like(q, jnp.float32, shape=(B, T, G, R, V))
    return o, jnp.full_like(q, EMPTY, jnp.float32, shape=(B, G, R, T))


def accumulate(
    plan: Plan, first: Offset, q: Array, k: Array, v: Array, marks: Marks, o: Array, lse: Array
) -> tuple[Float[Array, "B T G R V"], Float[Array, "B G R T"]]:
    """The (o, lse) of queries that have seen these keys, too; lse is EMPTY if there was none yet.

    first: as `blockwise`'s offset, the same for every row.
    """
    return jax.vmap(partial(_forward, plan, first))(q, k, v, marks, o, lse)


def no_gradients(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """What `accumulate_backward` adds to: of q [B T G R K], k [B G S K] and v [B G S V]; fp32."""
    dk, dv = (jnp.zeros_like(x.swapaxes(1, 2), jnp.float32) for x in (k, v))
    return jnp.zeros_like(q, jnp.float32), dk, dv


def accumulate_backward(
    plan: Plan,
    first: Offset,
    q: Array,
    k: Array,
    v: Array,
    marks: Marks,
    seen: tuple[Array, Array, Array],
    sums: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """Add to the sums what these keys do; seen: lse at the end, and `cotangents_of`'s two."""
    return jax.vmap(partial(_backward, plan, first))(q, k, v, marks, seen, sums)


def cotangents_of(
    o: Float[Array, "*B T G R V"], do: Float[Array, "*B T G R V"], dlse: Float[Array, "*B G R T"]
) -> tuple[Array, Array]:
    """do and the number that each query's weights' gradients have in common."""
    # The logsumexp's gradient by a score is its weight p, so it only shifts p (dp - delta).
    delta = jnp.einsum("...tgrv,...tgrv->...grt", o, do, preferred_element_type=jnp.float32) - dlse
    return do, delta


def gradients_of(
    plan: Plan, sums: tuple[Array, Array, Array], q: Array, k: Array, v: Array
) -> tuple[Array, Array, Array]:
    """Finished sums as gradients by q, k and v."""
    dq, dk, dv = sums
    return (
        dq.astype(q.dtype),
        (plan.scoring.scale * dk).swapaxes(-3, -2).astype(k.dtype),
        dv.swapaxes(-3, -2).astype(v.dtype),
    )


# What follows sees one row of the batch: q is [T G R K], k [S G K], v [S G V], marks [T] and [S].
# The R query heads of a KV head become rows of its tiles, so that fewer KV heads mean larger
# matmuls and no key is repeated: a tile of scores is [G, R * queries, keys].


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, first: Any, q: Array, k: Array, v: Array, marks: Any) -> Any:
    return _attend_fwd(plan, first, q, k, v, marks)[0]


def _attend_fwd(plan: Plan, first: Any, q: Array, k: Array, v: Array, marks: Any) -> Any:
    o, lse = _forward(plan, first, q, k, v, marks)
    return (o, lse), (first, q, k, v, marks, o, lse)


def _attend_bwd(plan: Plan, saved: Any, cotangents: tuple[Array, Array]) -> Any:
    first, q, k, v, marks, o, lse = saved
    sums = _backward(plan, first, q, k, v, marks, (lse, *cotangents_of(o, *cotangents)))
    # None: the float0 zeros that integer arguments ask for
    return None, *gradients_of(plan, sums, q, k, v), None


def _forward(
    plan: Plan, first: Any, q: Array, k: Array, v: Array, marks: Any, *before: Array
) -> tuple[Float[Array, "T G R V"], Float[Array, "G R T"]]:
    """Output and the logsumexp of each query's scores, from those before or from nothing.

    The output is in the dtype of the one before, or in q's.
    """
    (T, G, R, _), V = q.shape, v.shape[-1]
    tiles = Tiles(plan, first, marks, q.shape, k.shape)
    q = tiles.pad(q)
    if before:
        o, lse = tiles.pad(before[0]), tiles.pad(before[1], 2)
    else:
        o = jnp.zeros_like(q, shape=(*q.shape[:3], V))
        lse = jnp.zeros_like(q, jnp.float32, shape=(G, R, q.shape[0]))

    def queries(t: Index, out: tuple[Array, Array]) -> tuple[Array, Array]:
        qt = tiles.queries(q, t)

        def keys(masked: bool, j: Index, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            top, total, acc = carry
            s = plan.scoring.scores(_matmul("gqk,gsk->gqs", qt, tiles.keys(k, j)))
            if plan.scoring.slopes is not None:
                s += tiles.bias(t, j)
            if masked:
                s = jnp.where(tiles.mask(t, j), s, MASK_VALUE)
            new_top = jnp.maximum(top, s.max(-1))
            p, shrink = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
            vj = tiles.keys(v, j)
            acc = acc * shrink[..., None] + _matmul("gqs,gsv->gqv", p.astype(vj.dtype), vj)
            return new_top, total * shrink + p.sum(-1), acc

        if before:
            # An output and its logsumexp are what keys whose weights sum to 1 have made.
            top = take(out[1], t, tiles.tiling.queries, axis=2).reshape(G, -1)
            total = jnp.where(top == EMPTY, 0.0, 1.0)
            top = jnp.where(top == EMPTY, MASK_VALUE, top)
            acc = tiles.queries(out[0], t)
        else:
            top = jnp.full_like(qt[..., 0], MASK_VALUE, jnp.float32)
            total = jnp.zeros_like(top)
            acc = jnp.zeros_like(total[..., None], shape=(*total.shape, V))
        top, total, acc = tiles.for_keys(t, keys, (top, total, acc))
        # A query that saw no key has the maximum of hidden scores, or of none, and no meaning.
        some = top > MASK_VALUE / 2
        total = jnp.where(some, total, 1.0)
        o = jnp.where(some, 1 / total, 0.0)[..., None] * acc
        lse = jnp.where(some, top + jnp.log(total), EMPTY)
        return tiles.put_queries(out[0], o, t), put(out[1], lse.reshape(G, R, -1), t, axis=2)

    o, lse = tiles.for_queries(queries, (o, lse))
    return o[:T], lse[..., :T]


def _backward(
    plan: Plan, first: Any, q: Array, k: Array, v: Array, marks: Any, seen: Any, before: Any = None
) -> tuple[Float[Array, "T G R K"], Float[Array, "G S K"], Float[Array, "G S V"]]:
    """The sums before, or none, with what these keys add; dk is without `scale`."""
    T, G, _, K = q.shape
    tiles = Tiles(plan, first, marks, q.shape, k.shape)
    lse, do, delta = seen
    # Queries of padding have do = delta = 0, so they add nothing to dk and dv.
    q, do, lse, delta = tiles.pad(q), tiles.pad(do), tiles.pad(lse, 2), tiles.pad(delta, 2)

    def queries(t: Index, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        qt, dot = tiles.queries(q, t), tiles.queries(do, t)
        lse_t, delta_t = tiles.row(lse, t), tiles.row(delta, t)

        def keys(masked: bool, j: Index, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            # Scores lie transposed, [keys, queries]: three of the five matmuls then read their
            # operands in order, and only the small dq is kept transposed.
            dqt, dk, dv = carry
            kj, vj = tiles.keys(k, j), tiles.keys(v, j)
            s = plan.scoring.scores(_matmul("gsk,gqk->gsq", kj, qt))
            slope = plan.scoring.slope(s)
            if plan.scoring.slopes is not None:
                s += tiles.bias(t, j).mT
            if masked:
                s = jnp.where(tiles.mask(t, j).mT, s, MASK_VALUE)
            p = jnp.exp(s - lse_t)
            ds = (p * (_matmul("gsv,gqv->gsq", vj, dot) - delta_t) * slope).astype(q.dtype)
            dqt += _matmul("gsk,gsq->gkq", kj, ds)
            dk = tiles.add_keys(dk, _matmul("gsq,gqk->gsk", ds, qt), j)
            dv = tiles.add_keys(dv, _matmul("gsq,gqv->gsv", p.astype(do.dtype), dot), j)
            return dqt, dk, dv

        dqt = jnp.zeros_like(qt, jnp.float32, shape=(G, K, qt.shape[1]))
        dqt, dk, dv = tiles.for_keys(t, keys, (dqt, *sums[1:]))
        more = plan.scoring.scale * dqt.mT
        if before:
            more += tiles.queries(sums[0], t)
        return tiles.put_queries(sums[0], more, t), dk, dv

    if before:
        sums = tiles.pad(before[0]), *before[1:]
    else:
        sums = jnp.zeros_like(q), *(jnp.zeros_like(x.swapaxes(0, 1), jnp.float32) for x in (k, v))
    dq, dk, dv = tiles.for_queries(queries, sums)
    return dq[:T], dk, dv


_attend.defvjp(_attend_fwd, _attend_bwd)


_matmul = partial(jnp.einsum, preferred_element_type=jnp.float32)
