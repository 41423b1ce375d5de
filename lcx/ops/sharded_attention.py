"""Softmax attention over the whole past, of a sequence that lies on several devices.

Late queries see more than early ones, so every shard works on two halves of shards that together
cost the same (`lcx.parallel.seqpar.to_zigzag`), and gives them back. In two forms:

    gather    every shard gets all keys and values, once
    ring      keys and values pass from shard to shard, and each is forgotten when it has been seen
              (Liu et al. 2023, arXiv:2310.01889); the backward pass sends them round once more,
              with their gradients (Brandon et al. 2023, arXiv:2311.09431, for the balance)
"""

from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from lcx.kernels import FASTEST_THERE_IS, Kernels, chosen
from lcx.ops.attention import Bias, attention
from lcx.ops.blockwise import (
    EMPTY,
    accumulate,
    accumulate_backward,
    cotangents_of,
    gradients_of,
    no_gradients,
    nothing_seen,
)
from lcx.ops.tiles import MASK_VALUE, Marks, Plan, Scoring, Tiling
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards

GATHERED = 2**20
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
    exchange: Literal["gather", "ring"] | None = None,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B t H V"], Float[Array, "B t H"]]:
    """Causal attention of a shard's queries to the keys of all shards: o and lse, as `attention`.

    Arguments are this shard's pieces. slopes: of ALiBi, by `positions`.

    exchange: how shards come by each other's keys. None gathers where that is cheap: the row's keys
    and values are small in themselves (`GATHERED`), or beside the shard's queries, for KV heads are
    few. Raises ValueError where the ring is asked for and cannot be: for a decay, shards of an odd
    length, or the plain form, which wants all keys in one place.
    """
    T, H = q.shape[1:3]
    G, whole = k.shape[2], T * shards.count
    unfit = None
    if decay is not None:
        unfit = "decays are counted from one token to another, which needs all keys in one place"
    elif T % 2:
        unfit = f"shards of {T} tokens have no halves"
    elif chosen("attention", kernels) == "reference":
        unfit = "the plain form wants all keys in one place"
    if exchange is None:
        size = whole * G * (k.shape[3] + v.shape[3]) * k.dtype.itemsize
        cheap = size <= GATHERED or shards.count * G <= 2 * H
        exchange = "gather" if cheap or unfit else "ring"
    positions = None if slopes is None else positions
    if exchange == "gather":
        return _gathered(q, k, v, shards, softcap, segments, slopes, positions, decay, kernels)
    if exchange != "ring":
        raise ValueError(f"exchange {exchange!r}: use 'gather' or 'ring'")
    if unfit:
        raise ValueError(f"the ring cannot run here: {unfit}")
    return _around(q, k, v, shards, softcap, segments, slopes, positions)


def _gathered(q, k, v, shards, softcap, segments, slopes, positions, decay, kernels):
    T, here = q.shape[1], seqpar.index(shards)
    theirs = jax.tree.map(lambda x: seqpar.gather(x, shards), (k, v, segments, positions))
    ours, balanced = (q, segments, positions), T % 2 == 0
    if balanced:
        ours, parts = _balanced(ours, shards), seqpar.zigzag_indices(here, T, shards)
    else:
        parts = (here * T + jnp.arange(T),)

    def part(at: slice, offset: Any):
        own = jax.tree.map(lambda x: x[:, at], ours)
        return attention(
            *(own[0], *theirs[:2]),
            offset=offset,
            softcap=softcap,
            segments=None if segments is None else (own[1], theirs[2]),
            bias=None if slopes is None else Bias(slopes, (own[2], theirs[3])),
            decay=decay,
            kernels=kernels,
        )

    if decay is None:
        result = part(slice(None), jnp.concatenate(parts))
    else:
        # consecutive tokens at a time: sizes are counted from their middle
        ends = range(0, T + 1, T // len(parts))
        results = (part(slice(*at), p[0]) for at, p in zip(pairwise(ends), parts, strict=True))
        result = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *results)
    return _restored(result, shards) if balanced else result


def _balanced(arrays: Any, shards: Shards) -> Any:
    return jax.tree.map(lambda x: seqpar.to_zigzag(x, shards), arrays)


def _restored(arrays: Any, shards: Shards) -> Any:
    return jax.tree.map(lambda x: seqpar.from_zigzag(x, shards), arrays)


class _Ring(NamedTuple):
    """What is known of a ring when it is traced."""

    plan: Plan
    shards: Shards


def _around(q, k, v, shards, softcap, segments, slopes, positions):
    B, T, H, K = q.shape
    G = k.shape[2]
    scoring = Scoring(K**-0.5, None, softcap, slopes)
    # tiles that cut each half evenly
    plan = Plan(scoring, None, Tiling.of(B, T // 2, T // 2, H)._replace(rows=B))
    q = q.reshape(B, T, G, H // G, K)
    o, lse = _ring(_Ring(plan, shards), *_balanced((q, k, v, segments, positions), shards))
    o, lse = _restored((o, jnp.moveaxis(lse, -1, 1)), shards)
    return o.reshape(B, T, H, -1), lse.reshape(B, T, H)


# What follows works on the two halves of `to_zigzag`, one behind the other: their keys are in the
# order of the sequence, so that what a query sees of another shard's is its first few.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(of: _Ring, q: Array, k: Array, v: Array, segments: Any, positions: Any) -> Any:
    return _ring_forward(of, q, k, v, segments, positions)[0]


def last_seen(of: Shards, step: Int[Array, ""], local: int) -> Int[Array, " t"]:
    """Of each of this shard's queries: the index of the last key it sees of those here now.

    -1: it sees none of them.
    """
    here = seqpar.index(of)
    queries = jnp.concatenate(seqpar.zigzag_indices(here, local, of))
    low, high = (
        jnp.clip(queries - keys[0] + 1, 0, len(keys))
        for keys in seqpar.zigzag_indices((here - step) % of.count, local, of)
    )
    return low + high - 1


def _ring_forward(of, q, k, v, segments, positions):
    marks = Marks(segments, positions)

    def step(carry, number):
        (k, v, theirs), seen = carry
        following = seqpar.ring((k, v, theirs), of.shards)  # sent while this is worked on
        both = _both(marks, theirs)
        seen = accumulate(of.plan, last_seen(of.shards, number, q.shape[1]), q, k, v, both, *seen)
        return (following, seen), None

    carry = (k, v, marks), nothing_seen(q, v.shape[-1])
    (_, (o, lse)), _ = lax.scan(step, carry, jnp.arange(of.shards.count))
    o = o.astype(q.dtype)
    return (o, jnp.where(lse == EMPTY, MASK_VALUE, lse)), (q, k, v, marks, o, lse)


def _ring_backward(of, saved, cotangents):
    q, k, v, marks, o, lse = saved
    seen = lse, *cotangents_of(o, *cotangents)

    def step(carry, number):
        (k, v, theirs), sums = carry
        following = seqpar.ring((k, v, theirs), of.shards)
        first = last_seen(of.shards, number, q.shape[1])
        dq, *sums = accumulate_backward(of.plan, first, q, k, v, _both(marks, theirs), seen, sums)
        # gradients travel with what they are of, and are home when it is
        return (following, (dq, *seqpar.ring(sums, of.shards))), None

    carry = (k, v, marks), no_gradients(q, k, v)
    (_, sums), _ = lax.scan(step, carry, jnp.arange(of.shards.count))
    return *gradients_of(of.plan, sums, q, k, v), None, None


def _both(ours: Marks, theirs: Marks) -> Marks:
    """Each mark of the queries beside that of the keys."""
    return Marks(*(None if a is None else (a, b) for a, b in zip(ours, theirs, strict=True)))


_ring.defvjp(_ring_forward, _ring_backward)
