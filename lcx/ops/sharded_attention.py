"""Softmax attention over the whole past, of a sequence that lies on several devices.

Late queries see more than early ones, so every shard works on two halves of shards that together
cost the same (`lcx.seqpar.balance`), and gives them back. In two forms:

    gather    every shard gets all keys and values, once
    ring      keys and values pass from shard to shard, and each is forgotten when it has been seen
              (Liu et al. 2023, arXiv:2310.01889); the backward pass sends them round once more,
              with their gradients (Brandon et al. 2023, arXiv:2311.09431, for the balance)
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from lcx import seqpar
from lcx.ops.attention import Bias, attention
from lcx.ops.blockwise import (
    BLIND,
    HIDDEN,
    Marks,
    Plan,
    Scoring,
    Tiling,
    backward_of_rows,
    forward_of_rows,
)
from lcx.seqpar import Shards

GATHERED = 2**24
"""Bytes of a row's keys and values below which they are gathered, however many heads they have."""


def sharded_attention(
    q: Float[Array, "B t H K"],
    k: Float[Array, "B t G K"],
    v: Float[Array, "B t G V"],
    *,
    shards: Shards,
    softcap: float | None = None,
    segments: Int[Array, "B t"] | None = None,
    slopes: tuple[float, ...] | None = None,
    positions: Int[Array, "B t"] | None = None,
    decay: Float[np.ndarray, " K"] | None = None,
    implementation: Literal["gather", "ring"] | None = None,
) -> tuple[Float[Array, "B t H V"], Float[Array, "B t H"]]:
    """Causal attention of a shard's queries to the keys of all shards: o and lse, as `attention`.

    Arguments are this shard's pieces. slopes: of ALiBi, by `positions`.

    None gathers where that is cheap: the row's keys and values are small in themselves
    (`GATHERED`), or beside the shard's queries, for KV heads are few. Raises ValueError where the
    ring is asked for and cannot be: for a decay, or shards of an odd length.
    """
    T, H = q.shape[1:3]
    G, whole = k.shape[2], T * shards.count
    unfit = None
    if decay is not None:
        unfit = "decays are counted from one token to another, which needs all keys in one place"
    elif T % 2:
        unfit = f"shards of {T} tokens have no halves"
    if implementation is None:
        size = whole * G * (k.shape[3] + v.shape[3]) * k.dtype.itemsize
        cheap = size <= GATHERED or shards.count * G <= 2 * H
        implementation = "gather" if cheap or unfit else "ring"
    if implementation == "gather":
        return _gathered(q, k, v, shards, softcap, segments, slopes, positions, decay)
    if implementation != "ring":
        raise ValueError(f"implementation {implementation!r}: use 'gather' or 'ring'")
    if unfit:
        raise ValueError(f"the ring cannot run here: {unfit}")
    return _around(q, k, v, shards, softcap, segments, slopes and positions, slopes)


def _gathered(q, k, v, shards, softcap, segments, slopes, positions, decay):
    k, v = seqpar.gather(k, shards), seqpar.gather(v, shards)
    documents = None if segments is None else seqpar.gather(segments, shards)
    places = None if slopes is None else seqpar.gather(positions, shards)

    def part(q, begin):
        def with_ours(mark):
            return lax.dynamic_slice_in_dim(mark, begin, q.shape[1], axis=1), mark

        return attention(
            *(q, k, v),
            offset=begin,
            softcap=softcap,
            segments=None if documents is None else with_ours(documents),
            bias=None if places is None else Bias(slopes, with_ours(places)),
            decay=decay,
        )

    here = seqpar.index(shards)
    if q.shape[1] % 2:
        return part(q, here * q.shape[1])
    first, second = seqpar.halves(here, shards)
    low, high = seqpar.balance(q, shards)
    o, lse = part(low, first * low.shape[1])
    more, its = part(high, second * high.shape[1])
    return seqpar.restore(o, more, shards), seqpar.restore(lse, its, shards)


class _Ring(NamedTuple):
    """What is known of a ring when it is traced."""

    plan: Plan
    shards: Shards


def _around(q, k, v, shards, softcap, segments, positions, slopes):
    B, T, H, K = q.shape
    G = k.shape[2]
    scoring = Scoring(K**-0.5, None, softcap, slopes)
    plan = Plan(scoring, None, Tiling.of(B, T // 2, T // 2, H)._replace(rows=B))
    q = q.reshape(B, T, G, H // G, K)
    halves = [
        None if x is None else jnp.stack(seqpar.balance(x, shards))
        for x in (q, k, v, segments, positions)
    ]
    o, lse = _ring(_Ring(plan, shards), *halves)
    lse = jnp.moveaxis(lse, -1, 2)
    o = seqpar.restore(o[0], o[1], shards).reshape(B, T, H, -1)
    return o, seqpar.restore(lse[0], lse[1], shards).reshape(B, T, H)


# What follows works on two halves at a time: q is [2 B h G R K], k [2 B h G K], v [2 B h G V], a
# mark [2 B h]; o is [2 B h G R V] and lse [2 B G R h].


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(of: _Ring, q: Array, k: Array, v: Array, segments: Any, positions: Any) -> Any:
    return _ring_forward(of, q, k, v, segments, positions)[0]


def offset(query: Any, key: Any, length: int) -> Any:
    """The index of the first query of a half among the keys of another, both of `length`."""
    return (query - key) * length


def _pairs(of: _Ring, step: Int[Array, ""], length: int) -> Any:
    """The four pairs of a half of queries and a half of the keys that are here now."""
    here = seqpar.index(of.shards)
    mine = seqpar.halves(here, of.shards)
    theirs = seqpar.halves((here - step) % of.shards.count, of.shards)
    for a in range(2):
        for b in range(2):
            yield a, b, offset(mine[a], theirs[b], length)


def _marks(ours: Any, theirs: Any, a: int, b: int) -> Marks:
    return Marks(
        *(
            None if own is None else (own[a], other[b])
            for own, other in zip(ours, theirs, strict=True)
        )
    )


def _ring_forward(of, q, k, v, segments, positions):
    length, marks = q.shape[2], (segments, positions)

    def step(carry, number):
        (k, v, *theirs), o, lse = carry
        following = seqpar.ring((k, v, *theirs), of.shards)  # sent while this is worked on
        for a, b, first in _pairs(of, number, length):
            own = _marks(marks, theirs, a, b)
            more, its = forward_of_rows(of.plan, first, q[a], k[b], v[b], own)
            its = jnp.where(its == BLIND, HIDDEN, its)
            total = jnp.logaddexp(lse[a], its)
            shares = (jnp.moveaxis(jnp.exp(x - total), -1, 1)[..., None] for x in (lse[a], its))
            both = [x * share for x, share in zip((o[a], more), shares, strict=True)]
            o, lse = o.at[a].set(both[0] + both[1]), lse.at[a].set(total)
        return (following, o, lse), None

    o = jnp.zeros((*q.shape[:5], v.shape[-1]), jnp.float32)
    lse = jnp.full((*q.shape[:2], *q.shape[3:5], length), HIDDEN, jnp.float32)
    carry = ((k, v, *marks), o, lse)
    (_, o, lse), _ = lax.scan(step, carry, jnp.arange(of.shards.count))
    o = o.astype(q.dtype)
    return (o, lse), (q, k, v, marks, o, lse)


def _ring_backward(of, saved, cotangents):
    q, k, v, marks, o, lse = saved
    lse = jnp.where(lse == HIDDEN, BLIND, lse)

    def step(carry, number):
        (k, v, *theirs), dq, (dk, dv) = carry
        following = seqpar.ring((k, v, *theirs), of.shards)
        for a, b, first in _pairs(of, number, q.shape[2]):
            own = _marks(marks, theirs, a, b)
            block = (first, q[a], k[b], v[b], own, o[a], lse[a])
            grads = backward_of_rows(of.plan, block, tuple(c[a] for c in cotangents))
            dq, dk, dv = (
                total.at[i].add(more.astype(jnp.float32))
                for total, i, more in zip((dq, dk, dv), (a, b, b), grads, strict=True)
            )
        # gradients travel with what they are of, and are home when it is
        return (following, dq, seqpar.ring((dk, dv), of.shards)), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    carry = ((k, v, *marks), zeros[0], (zeros[1], zeros[2]))
    (_, dq, (dk, dv)), _ = lax.scan(step, carry, jnp.arange(of.shards.count))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_ring.defvjp(_ring_forward, _ring_backward)
