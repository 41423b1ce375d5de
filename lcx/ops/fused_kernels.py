"""The kernels of `lcx.ops.fused_attention`: what one program does with its block.

Written in Pallas for Triton. A program reads blocks of whole tokens, [queries, width] or [keys,
width], and makes one block of scores at a time, which stays in registers. Exponentials are of base
2, which the hardware has: scores are in units of log2(e).
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float

from lcx.ops.blockwise import EMPTY
from lcx.ops.tiles import MASK_VALUE, Index, Scoring

LOG2E = math.log2(math.e)


class Blocks(NamedTuple):
    """How one kernel is cut: it changes speed and nothing else."""

    queries: int
    keys: int
    warps: int
    """Each of 32 threads, that share a block."""
    stages: int
    """Blocks in flight from memory while one is worked on."""


class Inputs(NamedTuple):
    """What kernels read: arrays, how a program is given them, or its references to them.

    A reference is to all tokens of the program's row and head; one of the query heads that share a
    KV head is picked by an index more (`r`), where a program works on several.
    """

    offset: Any  # []
    q: Any  # [B T G R K]
    k: Any  # [B S G K]
    v: Any  # [B S G V]
    segments: Any = None  # [B T] and [B S]
    positions: Any = None  # [B T] and [B S]
    slopes: Any = None  # [G R]
    do: Any = None  # [B T G R V]
    lse: Any = None  # [B G R T], in units of log2(e); EMPTY or more of a query without keys
    delta: Any = None  # [B G R T]


class _Side(NamedTuple):
    """What is known of the queries of a block, or of its keys."""

    index: Any
    """Among the keys."""
    segment: Any
    position: Any


class Call(NamedTuple):
    """What is known of a kernel when it is compiled, and what its programs have in common."""

    scoring: Scoring
    blocks: Blocks
    T: int
    S: int
    R: int
    K: int
    V: int

    def queries(self, ref: Any, t: Index, width: int, r: Index | None = None) -> Array:
        """A block of queries [Q X], from t on; zeros past the end."""
        at = ref.at[pl.ds(t, self.blocks.queries), *_head(r), pl.ds(0, ref.shape[-1])]
        return _load(at, _inside(t, self.blocks.queries, self.T, width, ref.shape[-1]))

    def keys(self, ref: Any, s: Index, width: int) -> Array:
        """A block of keys, or of values, [s X]; zeros past the end."""
        at = ref.at[pl.ds(s, self.blocks.keys), pl.ds(0, ref.shape[-1])]
        return _load(at, _inside(s, self.blocks.keys, self.S, width, ref.shape[-1]))

    def numbers(self, ref: Any, t: Index, fill: float, r: Index | None = None) -> Array:
        """One number for each query of a block, [Q]."""
        at = ref.at[*_head(r), pl.ds(t, self.blocks.queries)]
        return _load(at, _tokens(t, self.blocks.queries, self.T), fill)

    def put_queries(self, ref: Any, x: Float[Array, "Q X"], t: Index, width: int) -> None:
        at = ref.at[pl.ds(t, self.blocks.queries), pl.ds(0, ref.shape[-1])]
        mask = _inside(t, self.blocks.queries, self.T, width, ref.shape[-1])
        triton.store(at, x.astype(ref.dtype), mask=mask)

    def put_keys(self, ref: Any, x: Float[Array, "s X"], s: Index, width: int) -> None:
        at = ref.at[pl.ds(s, self.blocks.keys), pl.ds(0, ref.shape[-1])]
        mask = _inside(s, self.blocks.keys, self.S, width, ref.shape[-1])
        triton.store(at, x.astype(ref.dtype), mask=mask)

    def put_numbers(self, ref: Any, x: Float[Array, " Q"], t: Index) -> None:
        size = self.blocks.queries
        triton.store(ref.at[pl.ds(t, size)], x, mask=_tokens(t, size, self.T))

    def query_side(self, given: Inputs, t: Index, axis: int) -> _Side:
        """Of the queries from t on, along this axis of a block of scores."""
        index = given.offset[...] + t + jnp.arange(self.blocks.queries)
        return self._side(given, 0, index, t, self.T, axis)

    def key_side(self, given: Inputs, s: Index, axis: int) -> _Side:
        return self._side(given, 1, s + jnp.arange(self.blocks.keys), s, self.S, axis)

    def _side(
        self, given: Inputs, which: int, index: Array, start: Index, length: int, axis: int
    ) -> _Side:
        mask = _tokens(start, index.size, length)

        def load(pair: Any) -> Array | None:
            return None if pair is None else _load(pair[which].at[pl.ds(start, index.size)], mask)

        side = _Side(index, load(given.segments), load(given.positions))
        return jax.tree.map(lambda x: jnp.expand_dims(x, 1 - axis), side)

    def scores(
        self, products: Array, query: _Side, key: _Side, slope: Array | None, masked: bool
    ) -> tuple[Array, Array | float]:
        """Scores in units of log2(e), and the derivative of the cap."""
        of = self.scoring
        if of.softcap is None:
            s, bend = products * (of.scale * LOG2E), 1.0
        else:
            share = jnp.tanh(products * (of.scale / of.softcap))
            s, bend = share * (of.softcap * LOG2E), 1 - share * share
        if slope is not None:
            # of integers, whose difference is exact where that of products with a slope is not
            s -= (LOG2E * slope) * (query.position - key.position).astype(jnp.float32)
        if masked:
            seen = (key.index <= query.index) & (key.index < self.S)
            if of.window is not None:
                seen &= key.index > query.index - of.window
            if query.segment is not None:
                seen &= query.segment == key.segment
            s = jnp.where(seen, s, MASK_VALUE)
        return s, bend

    def for_keys(self, given: Inputs, t: Index, body: Callable, carry: Any) -> Any:
        """Run `body(masked, j, carry)` over the blocks of keys that queries from t on may see.

        Blocks in the middle are seen by every query, whole: these need no mask.
        """
        size, window = self.blocks.keys, self.scoring.window
        early = given.offset[...] + t
        late = given.offset[...] + jnp.minimum(t + self.blocks.queries, self.T) - 1
        end = _count(late + size, size, 0, pl.cdiv(self.S, size))
        begin = whole = jnp.int32(0)
        if window is not None:
            begin = _count(early - window + 1, size, 0, end)
            whole = _count(late - window + size, size, begin, end)
        edge = _count(jnp.minimum(early + 1, self.S), size, whole, end)
        return _loop(given, (begin, whole, edge, end), body, carry)

    def for_queries(self, given: Inputs, s: Index, body: Callable, carry: Any) -> Any:
        """Run `body(masked, i, carry)` over the blocks of queries that may see keys from s on.

        Keys past the end need no mask here: what is made of them is not kept.
        """
        size, window = self.blocks.queries, self.scoring.window
        early = s - given.offset[...]  # the query that lies where the first of these keys does
        late = early + self.blocks.keys - 1
        end = jnp.int32(pl.cdiv(self.T, size))
        begin = _count(early, size, 0, end)
        if window is not None:
            end = _count(late + window + size - 1, size, begin, end)
        whole = _count(late + size - 1, size, begin, end)
        edge = end if window is None else _count(early + window, size, whole, end)
        return _loop(given, (begin, whole, edge, end), body, carry)


def _loop(given: Inputs, ends: tuple[Index, ...], body: Callable, carry: Any) -> Any:
    if given.segments is not None:
        return lax.fori_loop(ends[0], ends[-1], partial(body, True), carry)
    for (begin, end), masked in zip(pairwise(ends), (True, False, True), strict=True):
        if begin is not end:
            carry = lax.fori_loop(begin, end, partial(body, masked), carry)
    return carry


def _count(x: Index, size: int, low: Index, high: Index) -> Index:
    """x // size, moved into [low, high], of which low is not negative."""
    return jnp.minimum(jnp.maximum(lax.div(jnp.maximum(x, 0), size), low), high)


def _head(r: Index | None) -> tuple[Index, ...]:
    return () if r is None else (r,)


def _tokens(start: Index, size: int, length: int) -> Bool[Array, " n"] | None:
    """Which tokens of a block there are; None: all of any."""
    return None if length % size == 0 else start + jnp.arange(size) < length


def _inside(
    start: Index, size: int, length: int, width: int, padded: int
) -> Bool[Array, "n X"] | None:
    """Which numbers of a block [size, padded] there are; None: all of any."""
    tokens = _tokens(start, size, length)
    if tokens is None and width == padded:
        return None
    inside = jnp.broadcast_to(jnp.arange(padded)[None] < width, (size, padded))
    return inside if tokens is None else inside & tokens[:, None]


def _load(at: Any, mask: Array | None, fill: float = 0) -> Array:
    return triton.load(at, mask=mask, other=None if mask is None else fill)


def forward(call: Call, given: Inputs, o: Any, lse: Any) -> None:
    """A block of outputs [queries, V], and of their logsumexp; EMPTY where there is no key."""
    t, (qt, query, slope) = _my_queries(call, given)

    def keys(masked: bool, j: Index, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        top, total, acc = carry
        s = j * call.blocks.keys
        kj, vj = call.keys(given.k, s, call.K), call.keys(given.v, s, call.V)
        key = call.key_side(given, s, 1)
        x, unit = triton.dot(qt, kj, trans_b=True), call.scoring.scale * LOG2E
        if masked or unit < 0 or call.scoring.softcap is not None or slope is not None:
            x, unit = call.scores(x, query, key, slope, masked)[0], 1.0
        # else the largest product has the largest score: scaling is part of the subtraction below
        new_top = jnp.maximum(top, unit * x.max(1))
        p, shrink = jnp.exp2(unit * x - new_top[:, None]), jnp.exp2(top - new_top)
        acc = acc * shrink[:, None] + triton.dot(p.astype(vj.dtype), vj)
        return new_top, total * shrink + p.sum(1), acc

    top = jnp.full(call.blocks.queries, MASK_VALUE, jnp.float32)
    acc = jnp.zeros((call.blocks.queries, o.shape[-1]), jnp.float32)
    top, total, acc = call.for_keys(given, t, keys, (top, jnp.zeros_like(top), acc))
    # A query that saw no key has the maximum of hidden scores, or of none, and no meaning.
    some = top > MASK_VALUE / 2
    total = jnp.where(some, total, 1.0)
    call.put_queries(o, acc * jnp.where(some, 1 / total, 0.0)[:, None], t, call.V)
    call.put_numbers(lse, jnp.where(some, top / LOG2E + jnp.log(total), EMPTY), t)


def queries_backward(call: Call, given: Inputs, dq: Any) -> None:
    """A block of the gradient by queries, [queries, K]."""
    t, (qt, query, slope) = _my_queries(call, given)
    dot = call.queries(given.do, t, call.V)
    lse = call.numbers(given.lse, t, EMPTY)[:, None]
    delta = call.numbers(given.delta, t, 0)[:, None]

    def keys(masked: bool, j: Index, dqt: Array) -> Array:
        s = j * call.blocks.keys
        kj, vj = call.keys(given.k, s, call.K), call.keys(given.v, s, call.V)
        key = call.key_side(given, s, 1)
        x, bend = call.scores(triton.dot(qt, kj, trans_b=True), query, key, slope, masked)
        dp = triton.dot(dot, vj, trans_b=True)
        ds = (jnp.exp2(x - lse) * (dp - delta) * bend).astype(qt.dtype)
        return dqt + triton.dot(ds, kj)

    dqt = call.for_keys(given, t, keys, jnp.zeros(qt.shape, jnp.float32))
    call.put_queries(dq, call.scoring.scale * dqt, t, call.K)


def _my_queries(call: Call, given: Inputs) -> tuple[Index, tuple[Array, _Side, Array | None]]:
    """Where this program's queries begin; they, what is known of them, and their ALiBi slope."""
    # late queries see more keys: they come first, so that no long program is left to the end
    blocks = pl.cdiv(call.T, call.blocks.queries)
    t = (blocks - 1 - pl.program_id(0)) * call.blocks.queries
    slope = None if given.slopes is None else given.slopes[...]
    return t, (call.queries(given.q, t, call.K), call.query_side(given, t, 0), slope)


def keys_backward(call: Call, given: Inputs, dk: Any, dv: Any) -> None:
    """A block of the gradients by keys [keys, K] and values [keys, V], from all R query heads."""
    s = pl.program_id(0) * call.blocks.keys  # early keys, which more queries see, come first
    kj, vj = call.keys(given.k, s, call.K), call.keys(given.v, s, call.V)
    key = call.key_side(given, s, 0)

    def head(r: Index | None, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        slope = None if given.slopes is None else given.slopes[*_head(r) or (...,)]

        def queries(masked: bool, i: Index, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            # Scores lie transposed, [keys, queries], as both sums read them.
            dkj, dvj = sums
            t = i * call.blocks.queries
            qt, dot = call.queries(given.q, t, call.K, r), call.queries(given.do, t, call.V, r)
            lse = call.numbers(given.lse, t, EMPTY, r)[None]
            delta = call.numbers(given.delta, t, 0, r)[None]
            query = call.query_side(given, t, 1)
            x, bend = call.scores(triton.dot(kj, qt, trans_b=True), query, key, slope, masked)
            p = jnp.exp2(x - lse)
            dvj += triton.dot(p.astype(dot.dtype), dot)
            dp = triton.dot(vj, dot, trans_b=True)
            ds = (p * (dp - delta) * bend).astype(qt.dtype)
            return dkj + triton.dot(ds, qt), dvj

        return call.for_queries(given, s, queries, sums)

    sums = jnp.zeros(kj.shape, jnp.float32), jnp.zeros(vj.shape, jnp.float32)
    dkj, dvj = head(None, sums) if call.R == 1 else lax.fori_loop(0, call.R, head, sums)
    call.put_keys(dk, call.scoring.scale * dkj, s, call.K)
    call.put_keys(dv, dvj, s, call.V)
