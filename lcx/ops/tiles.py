"""The tiles of softmax attention's scores: how they are cut, which are visited, who sees whom.

A tile that causality or the window hides whole is not visited.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

MASK_VALUE = -1e30  # the score of a key out of sight: finite, so that no difference of two is NaN

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
        256 x 256 x 64 to one core, so a long text wants tiles of 512. A short one wants smaller
        tiles, four to a side, because those on the diagonal waste half their work, and keeps its
        cores busy when they are written out. Few rows together keep the scores in cache; but the
        loop over the others copies each row's keys, too dear for a long cache, and would gather
        sharded rows.
        """
        if jax.default_backend() != "cpu":
            return cls(B, _near(1024, T), _near(1024, S), unroll=False)
        longest = max(T, S)
        short = longest <= 1024
        size = 128 if longest <= 512 else 256 if short else 512
        queries, keys = _near(size, T), _near(size, S)
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


take, put = lax.dynamic_slice_in_dim, lax.dynamic_update_slice_in_dim


class Tiles:
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
        x = take(x, t, self.tiling.queries).transpose(1, 2, 0, 3)
        return x.reshape(self.G, -1, x.shape[-1])

    def put_queries(
        self, x: Float[Array, "T G R X"], tile: Float[Array, "G Q X"], t: Index
    ) -> Float[Array, "T G R X"]:
        tile = tile.reshape(self.G, self.R, -1, tile.shape[-1]).transpose(2, 0, 1, 3)
        return put(x, tile.astype(x.dtype), t, axis=0)

    def row(self, x: Float[Array, "G R T"], t: Index) -> Float[Array, "G 1 Q"]:
        return take(x, t, self.tiling.queries, axis=2).reshape(self.G, 1, -1)

    def start(self, j: Index) -> Index:
        return _min(j * self.tiling.keys, self.S - self.tiling.keys)

    def keys(self, x: Float[Array, "S G X"], j: Index) -> Float[Array, "G s X"]:
        return take(x, self.start(j), self.tiling.keys).swapaxes(0, 1)

    def add_keys(
        self, x: Float[Array, "G S X"], tile: Float[Array, "G s X"], j: Index
    ) -> Float[Array, "G S X"]:
        s = self.start(j)
        return put(x, take(x, s, self.tiling.keys, axis=1) + tile, s, axis=1)

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
            ours = take(self.pad(ours), t, size[0])
            seen &= ours[:, None] == take(theirs, self.start(j), size[1])[None]
        return jnp.tile(seen, (self.R, 1))

    def bias(self, t: Index, j: Index) -> Float[Array, "G Q s"]:
        ours, theirs = self.positions
        # padding stands where the last query does: at no distance that would raise a score
        ours = jnp.pad(ours, (0, -self.T % self.tiling.queries), mode="edge")
        query = take(ours, t, self.tiling.queries)
        bias = self.scoring.bias(query, take(theirs, self.start(j), self.tiling.keys))
        return bias.reshape(self.G, -1, bias.shape[-1])

    def for_queries(self, body: Callable[[Index, Any], Any], carry: Any) -> Any:
        size = self.tiling.queries
        return self._loop(0, -(-self.T // size), lambda i, c: body(i * size, c), carry)

    def for_keys(self, t: Index, body: Callable[[bool, Index, Any], Any], carry: Any) -> Any:
        """Run `body(masked, j, carry)` over the tiles of keys that queries from t on may see.

        Tiles that every query sees whole need no mask. Documents and windows leave few of them.
        """
        size, window = self.tiling.keys, self.scoring.window
        early = self.index(t, 0)
        late = self.index(t, self.tiling.queries - 1)
        end = _clip(late // size + 1, 0, -(-self.S // size))
        if self.segments is not None or window is not None:
            begin = 0 if window is None else _clip((early - window + 1) // size, 0, end)
            return self._loop(begin, end, partial(body, True), carry)
        edge = _clip(_min(early + 1, self.S) // size, 0, end)
        carry = self._loop(0, edge, partial(body, False), carry)
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
