"""The blockwise form of softmax attention: memory linear in the length.

It visits tiles of scores with the running max and sum of Milakov and Gimelshein
(arXiv:1805.02867), saves only the output and its logsumexp, and recomputes each tile in the
backward pass (Rabe and Staats, arXiv:2112.05682; Dao et al., arXiv:2205.14135, algorithms 1 and
4). Tiles that causality or the window hide whole are not visited, so a window W costs O(T W), and
a cache costs what it holds, not what it could.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

HIDDEN = -1e30  # the score of a key out of sight: finite, so that no difference of two is NaN
BLIND = -HIDDEN  # within this file, the logsumexp of a query without keys: exp(score - it) is 0

Segments = tuple[Int[Array, "B T"], Int[Array, "B S"]]
Positions = tuple[Int[Array, "B T"], Int[Array, "B S"]]
Index = int | Int[Array, ""]
Offset = Index | Int[Array, " T"] | Int[Array, "B T"]


class Scoring(NamedTuple):
    """From the product of a query and a key to their score, and who sees whom."""

    scale: float
    window: int | None
    softcap: float | None
    slopes: tuple[float, ...] | None = None
    """ALiBi: of each head, what a token of distance takes from its scores."""

    def scores(self, products: Float[Array, "..."]) -> Float[Array, "..."]:
        s = self.scale * products
        return s if self.softcap is None else self.softcap * jnp.tanh(s / self.softcap)

    def slope(self, s: Float[Array, "..."]) -> Float[Array, "..."] | float:
        """The derivative of the scores, from the scores: of the cap only, without `scale`."""
        return 1.0 if self.softcap is None else 1 - jnp.square(s / self.softcap)

    def bias(self, query: Int[Array, "*B T"], key: Int[Array, "*B S"]) -> Float[Array, "*B H T S"]:
        """ALiBi's part of the scores, from positions; the cap does not bound it."""
        # of integers, whose difference is exact where that of products with a slope is not
        distance = (query[..., None] - key[..., None, :]).astype(jnp.float32)
        return -jnp.array(self.slopes, jnp.float32)[:, None, None] * distance[..., None, :, :]

    def visible(
        self, query: Int[Array, "... T 1"], key: Int[Array, "... 1 S"]
    ) -> Bool[Array, "... T S"]:
        """Which keys each query may see, both given by their index among the keys."""
        past = key <= query
        return past if self.window is None else past & (key > query - self.window)


class Tiling(NamedTuple):
    """How a call is cut: it changes speed and nothing else."""

    rows: int
    """Batch rows taken together; a loop runs over the others."""
    queries: int
    keys: int
    unroll: bool
    """Write the tiles out one by one, where a compiled loop would run its steps in turn."""

    @classmethod
    def of(cls, B: int, T: int, S: int, H: int) -> "Tiling":
        """The tiling for this platform and shape.

        An accelerator wants few large tiles. On a CPU, XLA gives a matmul of fewer than about
        256 x 256 x 64 to one core, so a long text wants tiles of 512. A short one wants small
        tiles, because those on the diagonal waste half their work, and keeps its cores busy when
        they are written out. Few rows together keep the scores in cache; but the loop over the
        others copies each row's keys, too dear for a long cache, and would gather sharded rows.
        """
        if jax.default_backend() != "cpu":
            return cls(B, _near(1024, T), _near(1024, S), unroll=False)
        short = max(T, S) <= 512
        queries, keys = (_near(128 if short else 512, n) for n in (T, S))
        if jax.device_count() > 1 or S > 2 * T:
            return cls(B, queries, keys, unroll=False)
        fits = max(1, 2**16 // (H * queries * keys))
        rows = max(n for n in range(1, B + 1) if B % n == 0 and n <= fits)
        return cls(rows, queries, keys, unroll=short)


def _near(size: int, length: int) -> int:
    """The tile length, at most `size`, that cuts `length` most evenly; a multiple of 16."""
    pieces = -(-length // size)
    return min(length, -(-length // (16 * pieces)) * 16)


class Plan(NamedTuple):
    """What is known of a blockwise call when it is traced."""

    scoring: Scoring
    offset: int | None
    """None: known at run time only, or each query's own."""
    tiling: Tiling


class Marks(NamedTuple):
    """The documents and the positions of queries and of keys."""

    segments: Any
    positions: Any


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
    return o, jnp.where(lse == BLIND, HIDDEN, lse)


# Queries may see their keys in several calls, each of which goes on from the results of the one
# before: from an output and a logsumexp, and from the sums that become gradients.


def nothing_seen(q: Float[Array, "B T G R K"], V: int) -> tuple[Array, Array]:
    """The (o, lse) of queries that have seen no key yet; o in fp32, as sums should be."""
    B, T, G, R, _ = q.shape
    o = jnp.zeros_like(q, jnp.float32, shape=(B, T, G, R, V))
    return o, jnp.full_like(q, BLIND, jnp.float32, shape=(B, G, R, T))


def see(
    plan: Plan, first: Offset, q: Array, k: Array, v: Array, marks: Marks, o: Array, lse: Array
) -> tuple[Float[Array, "B T G R V"], Float[Array, "B G R T"]]:
    """The (o, lse) of queries that have seen these keys, too; lse is BLIND if there was none yet.

    first: as `blockwise`'s offset, the same for every row.
    """
    return jax.vmap(partial(_forward, plan, first))(q, k, v, marks, o, lse)


def no_gradients(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Sums for `see_back` to add to: of q [B T G R K], of k [B G S K], of v [B G S V]; fp32."""
    dk, dv = (jnp.zeros_like(x.swapaxes(1, 2), jnp.float32) for x in (k, v))
    return jnp.zeros_like(q, jnp.float32), dk, dv


def see_back(
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
    T, G, R, _ = q.shape
    o = jnp.zeros_like(q, shape=(T, G, R, v.shape[-1]))
    lse = jnp.full_like(q, BLIND, jnp.float32, shape=(G, R, T))
    o, lse = _forward(plan, first, q, k, v, marks, o, lse)
    return (o, lse), (first, q, k, v, marks, o, lse)


def _attend_bwd(plan: Plan, saved: Any, cotangents: tuple[Array, Array]) -> Any:
    first, q, k, v, marks, o, lse = saved
    dk, dv = (jnp.zeros_like(x.swapaxes(0, 1), jnp.float32) for x in (k, v))
    seen = lse, *cotangents_of(o, *cotangents)
    sums = _backward(plan, first, q, k, v, marks, seen, (jnp.zeros_like(q), dk, dv))
    # None: the float0 zeros that integer arguments ask for
    return None, *gradients_of(plan, sums, q, k, v), None


def _forward(
    plan: Plan, first: Any, q: Array, k: Array, v: Array, marks: Any, o: Array, lse: Array
) -> tuple[Float[Array, "T G R V"], Float[Array, "G R T"]]:
    """Output in the dtype of the one before, and the logsumexp of each query's scores."""
    T, G, R, _ = q.shape
    tiles = _Tiles(plan, first, marks, q.shape, k.shape)
    q, o, lse = tiles.pad(q), tiles.pad(o), tiles.pad(lse, 2)

    def queries(t: Index, out: tuple[Array, Array]) -> tuple[Array, Array]:
        qt = tiles.queries(q, t)

        def keys(masked: bool, j: Index, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            top, total, acc = carry
            s = plan.scoring.scores(_matmul("gqk,gsk->gqs", qt, tiles.keys(k, j)))
            if plan.scoring.slopes is not None:
                s += tiles.bias(t, j)
            if masked:
                s = jnp.where(tiles.mask(t, j), s, HIDDEN)
            new_top = jnp.maximum(top, s.max(-1))
            p, shrink = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
            vj = tiles.keys(v, j)
            acc = acc * shrink[..., None] + _matmul("gqs,gsv->gqv", p.astype(vj.dtype), vj)
            return new_top, total * shrink + p.sum(-1), acc

        # An output and its logsumexp are what keys whose weights sum to 1 have made.
        top = _take(out[1], t, tiles.tiling.queries, axis=2).reshape(G, -1)
        total = jnp.where(top == BLIND, 0.0, 1.0)
        top = jnp.where(top == BLIND, HIDDEN, top)
        acc = tiles.queries(out[0], t).astype(jnp.float32)
        top, total, acc = tiles.for_keys(t, keys, (top, total, acc))
        # A query that saw no key has the maximum of hidden scores, or of none, and no meaning.
        some = top > HIDDEN / 2
        total = jnp.where(some, total, 1.0)
        o = jnp.where(some, 1 / total, 0.0)[..., None] * acc
        lse = jnp.where(some, top + jnp.log(total), BLIND)
        return tiles.put_queries(out[0], o, t), _put(out[1], lse.reshape(G, R, -1), t, axis=2)

    o, lse = tiles.for_queries(queries, (o, lse))
    return o[:T], lse[..., :T]


def _backward(
    plan: Plan, first: Any, q: Array, k: Array, v: Array, marks: Any, seen: Any, sums: Any
) -> tuple[Float[Array, "T G R K"], Float[Array, "G S K"], Float[Array, "G S V"]]:
    """The sums with what these keys add; dk is without `scale`."""
    T, G, _, K = q.shape
    tiles = _Tiles(plan, first, marks, q.shape, k.shape)
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
                s = jnp.where(tiles.mask(t, j).mT, s, HIDDEN)
            p = jnp.exp(s - lse_t)
            ds = (p * (_matmul("gsv,gqv->gsq", vj, dot) - delta_t) * slope).astype(q.dtype)
            dqt += _matmul("gsk,gsq->gkq", kj, ds)
            dk = tiles.add_keys(dk, _matmul("gsq,gqk->gsk", ds, qt), j)
            dv = tiles.add_keys(dv, _matmul("gsq,gqv->gsv", p.astype(do.dtype), dot), j)
            return dqt, dk, dv

        dqt = jnp.zeros_like(qt, jnp.float32, shape=(G, K, qt.shape[1]))
        dqt, dk, dv = tiles.for_keys(t, keys, (dqt, *sums[1:]))
        more = tiles.queries(sums[0], t) + plan.scoring.scale * dqt.mT
        return tiles.put_queries(sums[0], more, t), dk, dv

    dq, dk, dv = tiles.for_queries(queries, (tiles.pad(sums[0]), *sums[1:]))
    return dq[:T], dk, dv


_attend.defvjp(_attend_fwd, _attend_bwd)

_take, _put = lax.dynamic_slice_in_dim, lax.dynamic_update_slice_in_dim
_matmul = partial(jnp.einsum, preferred_element_type=jnp.float32)


class _Tiles:
    """The geometry of one call: which tiles to visit, where each begins, what each may see.

    Queries are padded to whole tiles. Keys are not (a cache is read where it lies): the last tile
    of keys is moved back to end with them, and those it shares with the one before are masked.
    """

    def __init__(self, plan: Plan, first: Any, marks: Marks, q_shape: Any, k_shape: Any):
        self.tiling, self.scoring = plan.tiling, plan.scoring
        self.segments, self.positions = marks
        self.first = first if plan.offset is None else plan.offset
        """The index of the first query among the keys; an array [T]: of each."""
        self.T, self.G, self.R, _ = q_shape
        self.S = k_shape[0]

    def pad(self, x: Array, axis: int = 0) -> Array:
        extra = -self.T % self.tiling.queries
        return jnp.pad(x, [(0, extra * (n == axis)) for n in range(x.ndim)]) if extra else x

    def queries(self, x: Float[Array, "T G R X"], t: Index) -> Float[Array, "G Q X"]:
        x = _take(x, t, self.tiling.queries).transpose(1, 2, 0, 3)
        return x.reshape(self.G, -1, x.shape[-1])

    def put_queries(
        self, x: Float[Array, "T G R X"], tile: Float[Array, "G Q X"], t: Index
    ) -> Float[Array, "T G R X"]:
        tile = tile.reshape(self.G, self.R, -1, tile.shape[-1]).transpose(2, 0, 1, 3)
        return _put(x, tile.astype(x.dtype), t, axis=0)

    def row(self, x: Float[Array, "G R T"], t: Index) -> Float[Array, "G 1 Q"]:
        return _take(x, t, self.tiling.queries, axis=2).reshape(self.G, 1, -1)

    def start(self, j: Index) -> Index:
        return _min(j * self.tiling.keys, self.S - self.tiling.keys)

    def keys(self, x: Float[Array, "S G X"], j: Index) -> Float[Array, "G s X"]:
        return _take(x, self.start(j), self.tiling.keys).swapaxes(0, 1)

    def add_keys(
        self, x: Float[Array, "G S X"], tile: Float[Array, "G s X"], j: Index
    ) -> Float[Array, "G S X"]:
        s = self.start(j)
        return _put(x, _take(x, s, self.tiling.keys, axis=1) + tile, s, axis=1)

    def index(self, t: Index, n: int | Int[Array, " Q"]) -> Index | Int[Array, " Q"]:
        """The index among the keys of query t + n; of the last one, if that is padding."""
        if isinstance(self.first, int) or self.first.ndim == 0:
            return self.first + t + n
        return self.first.at[t + n].get(mode="clip")

    def mask(self, t: Index, j: Index) -> Bool[Array, "Q s"]:
        size = self.tiling.queries, self.tiling.keys
        query = jnp.asarray(self.index(t, jnp.arange(size[0])))[:, None]
        key = jnp.arange(size[1])[None] + self.start(j)
        seen = self.scoring.visible(query, key) & (key >= j * size[1])
        if self.segments is not None:
            ours, theirs = self.segments
            ours = _take(self.pad(ours), t, size[0])
            seen &= ours[:, None] == _take(theirs, self.start(j), size[1])[None]
        return jnp.tile(seen, (self.R, 1))

    def bias(self, t: Index, j: Index) -> Float[Array, "G Q s"]:
        ours, theirs = self.positions
        # padding stands where the last query does: at no distance that would raise a score
        ours = jnp.pad(ours, (0, -self.T % self.tiling.queries), mode="edge")
        query = _take(ours, t, self.tiling.queries)
        bias = self.scoring.bias(query, _take(theirs, self.start(j), self.tiling.keys))
        return bias.reshape(self.G, -1, bias.shape[-1])

    def for_queries(self, body: Callable[[Index, Any], Any], carry: Any) -> Any:
        size = self.tiling.queries
        return self._loop(0, -(-self.T // size), lambda i, c: body(i * size, c), carry)

    def for_keys(self, t: Index, body: Callable[[bool, Index, Any], Any], carry: Any) -> Any:
        """Run `body(masked, j, carry)` over the tiles of keys that queries from t on may see.

        Tiles in the middle are seen by every query, whole: these need no mask.
        """
        size, window = self.tiling.keys, self.scoring.window
        early = self.index(t, 0)
        late = self.index(t, self.tiling.queries - 1)
        end = _clip(late // size + 1, 0, -(-self.S // size))
        begin = 0 if window is None else _clip((early - window + 1) // size, 0, end)
        if self.segments is not None:
            return self._loop(begin, end, partial(body, True), carry)
        whole = 0 if window is None else _clip(-((window - 1 - late) // size), begin, end)
        edge = _clip(_min(early + 1, self.S) // size, whole, end)
        carry = self._loop(begin, whole, partial(body, True), carry)
        carry = self._loop(whole, edge, partial(body, False), carry)
        return self._loop(edge, end, partial(body, True), carry)

    def _loop(self, begin: Index, end: Index, body: Callable[[Index, Any], Any], carry: Any) -> Any:
        static = isinstance(begin, int) and isinstance(end, int)
        if static and (self.tiling.unroll or end - begin <= 1):
            for i in range(begin, end):
                carry = body(i, carry)
            return carry
        return lax.fori_loop(begin, end, body, carry)


def _min(a: Index, b: Index) -> Index:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.minimum(a, b)


def _clip(x: Index, low: Index, high: Index) -> Index:
    """x, moved into [low, high]; plain ints stay plain ints, so that loops can be written out."""
    return -_min(-_min(x, high), -low)
