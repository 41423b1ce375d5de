"""The fused form of softmax attention, for NVIDIA GPUs: no score leaves the chip.

FlashAttention-2 (Dao, arXiv:2307.08691) in three Pallas kernels that Triton compiles. `_forward`
walks the keys that a block of queries sees, with the running max and sum of `lcx.ops.blockwise`.
The backward pass recomputes the scores from the logsumexp: `_keys_backward` walks the queries (of
all heads of a KV head) that see a block of keys, `_queries_backward` walks the keys once more. So
every output has one writer, and results are the same in each run.

Scores and sums are fp32, and factors of products are in the arrays' dtype, as in `blockwise`. For
fp32 arrays products are as exact as `jax.default_matmul_precision` says. Exponentials are of base
2, which the hardware has: scores are in units of log2(e), and so is the logsumexp until it is put
out.
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
from jaxtyping import Array, Float

from lcx.ops.blockwise import EMPTY, cotangents_of
from lcx.ops.tiles import MASK_VALUE, Index, Marks, Positions, Scoring, Segments

LOG2E = math.log2(math.e)


class Blocks(NamedTuple):
    """How one kernel is cut: it changes speed and nothing else."""

    queries: int
    keys: int
    warps: int
    """Each of 32 threads, that share a block."""
    stages: int
    """Blocks in flight from memory while one is worked on."""


class Kernel(NamedTuple):
    """The blocks of the three kernels."""

    forward: Blocks
    keys_backward: Blocks
    queries_backward: Blocks


TUNED: dict[int, Kernel] = {
    # A block's sums must fit in registers (64k words an SM) and what is in flight in shared memory
    # (227 kB), where wider heads leave room for fewer queries and keys.
    64: Kernel(Blocks(128, 64, 4, 3), Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 3)),
    128: Kernel(Blocks(128, 64, 8, 3), Blocks(64, 64, 8, 2), Blocks(64, 64, 8, 2)),
    256: Kernel(Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 1), Blocks(32, 32, 8, 1)),
}
"""By the width of heads, the larger of K and V, of 2 bytes a number; for Hopper (H100)."""

WIDEST = max(TUNED)


def fused(
    q: Float[Array, "B T G R K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    offset: Index,
    scoring: Scoring,
    segments: Segments | None = None,
    positions: Positions | None = None,
    kernel: Kernel | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T G R V"], Float[Array, "B T G R"]]:
    """Output in q's dtype and logsumexp, as `lcx.ops.attention.attention` has them.

    K and V at most `WIDEST`. interpret: run the kernels in JAX's own operations, on any platform,
    slowly.
    """
    if kernel is None:
        width = max(64, pl.next_power_of_2(max(q.shape[-1], v.shape[-1])))
        kernel = TUNED[width]
        if q.dtype == jnp.float32:
            kernel = Kernel(*(_halved(blocks) for blocks in kernel))
    plan = _Plan(scoring, Kernel(*(_fit(b, q.shape[1], k.shape[1]) for b in kernel)), interpret)
    marks = Marks(segments, positions)
    o, lse = _attend(plan, jnp.asarray(offset, jnp.int32)[None], q, k, v, marks)
    lse = jnp.moveaxis(lse, -1, 1)
    return o, jnp.where(lse == EMPTY, MASK_VALUE, lse)


def _halved(blocks: Blocks) -> Blocks:
    """Numbers of 4 bytes take the room of two."""
    return blocks._replace(queries=max(32, blocks.queries // 2), keys=max(32, blocks.keys // 2))


def _fit(blocks: Blocks, T: int, S: int) -> Blocks:
    """No longer than the queries and the keys there are, but for the 16 that a product needs."""
    queries, keys = (max(16, pl.next_power_of_2(n)) for n in (T, S))
    return blocks._replace(queries=min(blocks.queries, queries), keys=min(blocks.keys, keys))


class _Plan(NamedTuple):
    """What is known of a call when it is traced."""

    scoring: Scoring
    kernel: Kernel
    interpret: bool


class _Inputs(NamedTuple):
    """What kernels read: the arrays, how each is given to a program, and there references to it."""

    offset: Any  # [1]
    q: Any  # [B T G R K]
    k: Any  # [B S G K]
    v: Any  # [B S G V]
    marks: Marks
    slopes: Any  # [G R]
    do: Any = None  # [B T G R V]
    lse: Any = (
        None  # [B G R T]; EMPTY where there is no key, as in `blockwise`, until it is put out
    )
    delta: Any = None  # [B G R T]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, offset: Any, q: Array, k: Array, v: Array, marks: Any) -> Any:
    return _attend_fwd(plan, offset, q, k, v, marks)[0]


def _attend_fwd(plan: _Plan, offset: Any, q: Array, k: Array, v: Array, marks: Any) -> Any:
    inputs = _Inputs(offset, q, k, v, marks, _slopes(plan, q))
    (B, T, G, R, _), V = q.shape, v.shape[-1]
    results = ((B, T, G, R, V), q.dtype), ((B, G, R, T), jnp.float32)
    o, lse = _run(plan, plan.kernel.forward, _forward, inputs, results)
    return (o, lse), (offset, q, k, v, marks, o, lse)


def _attend_bwd(plan: _Plan, saved: Any, cotangents: tuple[Array, Array]) -> Any:
    offset, q, k, v, marks, o, lse = saved
    do, delta = cotangents_of(o, *cotangents)
    inputs = _Inputs(offset, q, k, v, marks, _slopes(plan, q), do, lse, delta)
    results = (k.shape, k.dtype), (v.shape, v.dtype)
    dk, dv = _run(plan, plan.kernel.keys_backward, _keys_backward, inputs, results)
    results = ((q.shape, q.dtype),)
    (dq,) = _run(plan, plan.kernel.queries_backward, _queries_backward, inputs, results)
    # None: the float0 zeros that integer arguments ask for
    return None, dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _slopes(plan: _Plan, q: Float[Array, "B T G R K"]) -> Float[Array, "G R"] | None:
    slopes = plan.scoring.slopes
    return None if slopes is None else jnp.array(slopes, jnp.float32).reshape(q.shape[2:4])


def _run(plan: _Plan, blocks: Blocks, body: Callable, inputs: _Inputs, results: Any) -> Any:
    """One kernel: a program for each block of queries and query head, or of keys and KV head."""
    (B, T, G, R, K), (_, S, _, V) = inputs.q.shape, inputs.v.shape
    call = _Call(plan.scoring, blocks, T, S, R, K, V)
    by_keys = body is _keys_backward
    programs = pl.cdiv(S, blocks.keys) if by_keys else pl.cdiv(T, blocks.queries)
    heads = R if by_keys and R > 1 else None

    def of(h: Index) -> tuple[Index, Index]:
        """The KV head of a program's head, and the place of its query heads among that one's."""
        return (h, 0) if by_keys else (lax.div(h, R), lax.rem(h, R))

    # Each array whole, but for rows of the batch and heads: blocks are cut in the kernels. A width
    # is filled up to a power of 2, by what is never read.
    def queries(width: int) -> pl.BlockSpec:
        shape = (None, T, None, heads, _padded(width))
        return pl.BlockSpec(shape, lambda i, h, b: (b, 0, *of(h), 0))

    def keys(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, S, None, _padded(width)), lambda i, h, b: (b, 0, of(h)[0], 0))

    tokens = tuple(pl.BlockSpec((None, n), lambda i, h, b: (b, 0)) for n in (T, S))
    number = pl.BlockSpec((None, None, heads, T), lambda i, h, b: (b, *of(h), 0))
    specs = _Inputs(
        offset=pl.BlockSpec((None,), lambda i, h, b: (0,)),
        q=queries(K),
        k=keys(K),
        v=keys(V),
        marks=Marks(*(None if mark is None else tokens for mark in inputs.marks)),
        slopes=None
        if inputs.slopes is None
        else pl.BlockSpec((None, heads), lambda i, h, b: of(h)),
        do=None if inputs.do is None else queries(V),
        lse=None if inputs.lse is None else number,
        delta=None if inputs.delta is None else number,
    )
    outputs = {
        _forward: (queries(V), number),
        _keys_backward: (keys(K), keys(V)),
        _queries_backward: (queries(K),),
    }
    return pl.pallas_call(
        partial(body, call),
        grid=(programs, G if by_keys else G * R, B),
        in_specs=(specs,),
        out_specs=outputs[body],
        out_shape=tuple(jax.ShapeDtypeStruct(*result) for result in results),
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=plan.interpret,
        name="attention" + body.__name__,
    )(inputs)


def _padded(width: int) -> int:
    return max(16, pl.next_power_of_2(width))  # a product wants 16


class _Side(NamedTuple):
    """What is known of the queries of a block, or of its keys."""

    index: Any
    """Among the keys."""
    segment: Any
    position: Any

    def along(self, axis: int) -> "_Side":
        """For scores that have these along this one of their two axes."""
        return jax.tree.map(lambda x: jnp.expand_dims(x, 1 - axis), self)


class _Call(NamedTuple):
    """What a kernel knows when it is compiled, and what its programs share."""

    scoring: Scoring
    blocks: Blocks
    T: int
    S: int
    R: int
    K: int
    V: int

    def queries(
        self, ref: Any, t: Index, width: int, r: Index | None = None
    ) -> Float[Array, "Q X"]:
        """A block of queries; zeros past the end."""
        at, mask = self._queries_at(ref, t, width, r)
        return triton.load(at, mask=mask, other=None if mask is None else 0.0)

    def put_queries(self, ref: Any, x: Float[Array, "Q X"], t: Index, width: int) -> None:
        at, mask = self._queries_at(ref, t, width, None)
        triton.store(at, x.astype(ref.dtype), mask=mask)

    def _queries_at(self, ref: Any, t: Index, width: int, r: Index | None) -> tuple[Any, Any]:
        at = ref.at[pl.ds(t, self.blocks.queries), *_head(r), pl.ds(0, ref.shape[-1])]
        return at, _inside(t, self.blocks.queries, self.T, width, ref.shape[-1])

    def keys(self, ref: Any, s: Index, width: int) -> Float[Array, "s X"]:
        """A block of keys, or of values; zeros past the end."""
        at, mask = self._keys_at(ref, s, width)
        return triton.load(at, mask=mask, other=None if mask is None else 0.0)

    def put_keys(self, ref: Any, x: Float[Array, "s X"], s: Index, width: int) -> None:
        at, mask = self._keys_at(ref, s, width)
        triton.store(at, x.astype(ref.dtype), mask=mask)

    def _keys_at(self, ref: Any, s: Index, width: int) -> tuple[Any, Any]:
        at = ref.at[pl.ds(s, self.blocks.keys), pl.ds(0, ref.shape[-1])]
        return at, _inside(s, self.blocks.keys, self.S, width, ref.shape[-1])

    def numbers(
        self, ref: Any, t: Index, fill: float, r: Index | None = None
    ) -> Float[Array, " Q"]:
        """One number for each query of a block."""
        return _vector(ref.at[*_head(r), pl.ds(t, self.blocks.queries)], t, self.T, fill)

    def put_numbers(self, ref: Any, x: Float[Array, " Q"], t: Index) -> None:
        at = ref.at[pl.ds(t, self.blocks.queries)]
        triton.store(at, x, mask=_inside_row(t, self.blocks.queries, self.T))

    def query_side(self, given: _Inputs, t: Index) -> _Side:
        index = given.offset[...] + t + jnp.arange(self.blocks.queries)
        return self._side(given, 0, index, t, self.blocks.queries, self.T)

    def key_side(self, given: _Inputs, s: Index) -> _Side:
        index = s + jnp.arange(self.blocks.keys)
        return self._side(given, 1, index, s, self.blocks.keys, self.S)

    def _side(
        self, given: _Inputs, which: int, index: Array, start: Index, size: int, length: int
    ) -> _Side:
        def mark(refs: Any) -> Any:
            return refs and _vector(refs[which].at[pl.ds(start, size)], start, length, 0)

        return _Side(index, *map(mark, given.marks))

    def scores(
        self, products: Array, query: _Side, key: _Side, slope: Any, masked: bool
    ) -> tuple[Array, Array | float]:
        """Scores, and the derivative of the cap; the sides lie along the axes that they have."""
        of = self.scoring
        if of.softcap is None:
            s, bend = products * (of.scale * LOG2E), 1.0
        else:
            share = jnp.tanh(products * (of.scale / of.softcap))
            s, bend = share * (of.softcap * LOG2E), 1 - share * share
        if of.slopes is not None:
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

    def for_keys(self, given: _Inputs, t: Index, body: Callable, carry: Any) -> Any:
        """Run `body(masked, j, carry)` over the blocks of keys that queries from t on may see.

        Blocks in the middle are seen by every query, whole: these need no mask.
        """
        size, window = self.blocks.keys, self.scoring.window
        early = given.offset[...] + t
        late = given.offset[...] + jnp.minimum(t + self.blocks.queries, self.T) - 1
        end = _count(late + size, size, 0, pl.cdiv(self.S, size))
        begin = jnp.int32(0) if window is None else _count(early - window + 1, size, 0, end)
        whole = begin if window is None else _count(late - window + size, size, begin, end)
        edge = _count(jnp.minimum(early + 1, self.S), size, whole, end)
        return self._loop(given, (begin, whole, edge, end), body, carry)

    def for_queries(self, given: _Inputs, s: Index, body: Callable, carry: Any) -> Any:
        """The same over the blocks of queries that may see keys from s on.

        Keys past the end need no mask here: what is made of them is not kept.
        """
        size, window = self.blocks.queries, self.scoring.window
        first = s - given.offset[...]
        """The query that is at the first key."""
        last = first + self.blocks.keys - 1
        end = jnp.int32(pl.cdiv(self.T, size))
        begin = _count(first, size, 0, end)
        if window is not None:
            end = _count(last + window + size - 1, size, begin, end)
        whole = _count(last + size - 1, size, begin, end)
        edge = end if window is None else _count(first + window, size, whole, end)
        return self._loop(given, (begin, whole, edge, end), body, carry)

    def _loop(self, given: _Inputs, ends: tuple[Index, ...], body: Callable, carry: Any) -> Any:
        if given.marks.segments is not None:
            return lax.fori_loop(ends[0], ends[-1], partial(body, True), carry)
        for (begin, end), masked in zip(pairwise(ends), (True, False, True), strict=True):
            if begin is not end:
                carry = lax.fori_loop(begin, end, partial(body, masked), carry)
        return carry


def _head(r: Index | None) -> tuple[Index, ...]:
    """The index of a query head, where there are several."""
    return () if r is None else (r,)


def _count(x: Index, size: int, low: Index, high: Index) -> Index:
    """x // size, moved into [low, high], of which low is not negative."""
    return jnp.minimum(jnp.maximum(lax.div(jnp.maximum(x, 0), size), low), high)


def _inside_row(start: Index, size: int, length: int) -> Any:
    """Which of a block's tokens there are; None: all."""
    return None if length % size == 0 else start + jnp.arange(size) < length


def _inside(start: Index, size: int, length: int, width: int, padded: int) -> Any:
    """Which numbers of a block [size, padded] there are; None: all."""
    rows = _inside_row(start, size, length)
    columns = None if width == padded else jnp.arange(padded) < width
    if rows is None or columns is None:
        mask = rows[:, None] if columns is None and rows is not None else None
        mask = columns[None] if columns is not None else mask
        return None if mask is None else jnp.broadcast_to(mask, (size, padded))
    return rows[:, None] & columns[None]


def _vector(at: Any, start: Index, length: int, fill: float) -> Array:
    mask = _inside_row(start, at.shape[0], length)
    return triton.load(at, mask=mask, other=None if mask is None else fill)


def _forward(call: _Call, given: _Inputs, o: Any, lse: Any) -> None:
    queries = call.blocks.queries
    # late queries see more keys: theirs first, so that no program is left to run alone
    t = (pl.cdiv(call.T, queries) - 1 - pl.program_id(0)) * queries
    qt, query = call.queries(given.q, t, call.K), call.query_side(given, t).along(0)
    slope = None if given.slopes is None else given.slopes[...]

    def keys(masked: bool, j: Index, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        top, total, acc = carry
        s = j * call.blocks.keys
        kj, vj = call.keys(given.k, s, call.K), call.keys(given.v, s, call.V)
        key = call.key_side(given, s).along(1)
        x, _ = call.scores(triton.dot(qt, kj, trans_b=True), query, key, slope, masked)
        new_top = jnp.maximum(top, x.max(1))
        p, shrink = jnp.exp2(x - new_top[:, None]), jnp.exp2(top - new_top)
        acc = acc * shrink[:, None] + triton.dot(p.astype(vj.dtype), vj)
        return new_top, total * shrink + p.sum(1), acc

    top = jnp.full(queries, MASK_VALUE, jnp.float32)
    total = jnp.zeros(queries, jnp.float32)
    acc = jnp.zeros((queries, o.shape[-1]), jnp.float32)
    top, total, acc = call.for_keys(given, t, keys, (top, total, acc))
    # A query that saw no key has the maximum of hidden scores, or of none, and no meaning.
    some = top > MASK_VALUE / 2
    total = jnp.where(some, total, 1.0)
    acc *= jnp.where(some, 1 / total, 0.0)[:, None]
    call.put_queries(o, acc, t, call.V)
    call.put_numbers(lse, jnp.where(some, top / LOG2E + jnp.log(total), EMPTY), t)


def _queries_backward(call: _Call, given: _Inputs, dq: Any) -> None:
    queries = call.blocks.queries
    t = (pl.cdiv(call.T, queries) - 1 - pl.program_id(0)) * queries
    qt, query = call.queries(given.q, t, call.K), call.query_side(given, t).along(0)
    dot = call.queries(given.do, t, call.V)
    lse = LOG2E * call.numbers(given.lse, t, EMPTY)[:, None]
    delta = call.numbers(given.delta, t, 0.0)[:, None]
    slope = None if given.slopes is None else given.slopes[...]

    def keys(masked: bool, j: Index, dqt: Array) -> Array:
        s = j * call.blocks.keys
        kj, vj = call.keys(given.k, s, call.K), call.keys(given.v, s, call.V)
        key = call.key_side(given, s).along(1)
        x, bend = call.scores(triton.dot(qt, kj, trans_b=True), query, key, slope, masked)
        dp = triton.dot(dot, vj, trans_b=True)
        ds = (jnp.exp2(x - lse) * (dp - delta) * bend).astype(qt.dtype)
        return dqt + triton.dot(ds, kj)

    dqt = call.for_keys(given, t, keys, jnp.zeros(qt.shape, jnp.float32))
    call.put_queries(dq, call.scoring.scale * dqt, t, call.K)


def _keys_backward(call: _Call, given: _Inputs, dk: Any, dv: Any) -> None:
    # early keys are seen by more queries, and come first as it is
    s = pl.program_id(0) * call.blocks.keys
    kj, vj = call.keys(given.k, s, call.K), call.keys(given.v, s, call.V)
    key = call.key_side(given, s).along(0)

    def head(r: Index | None, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        slope = None if given.slopes is None else given.slopes[*_head(r) or (...,)]

        def queries(masked: bool, i: Index, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            # Scores lie transposed, [keys, queries], as both sums read them.
            dkj, dvj = sums
            t = i * call.blocks.queries
            qt, dot = call.queries(given.q, t, call.K, r), call.queries(given.do, t, call.V, r)
            lse = LOG2E * call.numbers(given.lse, t, EMPTY, r)[None]
            delta = call.numbers(given.delta, t, 0.0, r)[None]
            query = call.query_side(given, t).along(1)
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
