"""A cache that grows with a text, in several buffers of which only those in use are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from lcx.ops.attention import FEW, merge
from lcx.ops.tiles import MASK_VALUE, Index
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards
from lcx.sparsity.past import Past, fits

Answer = tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]
Kept = TypeVar("Kept", bound=Past)


class Buffer(NamedTuple):
    """Keys and values of some slots. They lie by head: a query's products are fast so."""

    k: Float[Array, "B G s K"]
    v: Float[Array, "B G s V"]


class GrowingCache(NamedTuple):
    """Room for the tokens of a whole text, of which the first `used` are there.

    On a CPU, XLA copies any slice of an array before a product reads it, and reads whole arrays
    where they lie: what is filled can be read by itself only from arrays of its own (decision 19).
    """

    buffers: tuple[Buffer, ...]
    """One after the other."""
    marks: tuple[Int[Array, "B S"], ...]
    """What is known of each slot beside: what follows k and v in the entries that are kept."""
    used: Int[Array, " B"]
    """The same in all rows, which are read side by side."""


@dataclass(frozen=True)
class Part(Generic[Kept]):
    """Some of the keys, in the order of the text."""

    entries: Kept
    offset: Index
    """The index of the piece's first query among them; negative for queries before all of them."""
    reached: Bool[Array, ""] | None
    """Whether any query sees one of them; None: surely."""


def sizes(capacity: int, slot: int) -> list[int]:
    """How many slots each buffer has, where one takes `slot` bytes: eighths, the first in halves.

    So a short text reads little of a large cache. No buffer is smaller than 128 slots, or than
    `SMALLEST`. On an accelerator, which waits at each branch, there is one.
    """
    if jax.default_backend() != "cpu":
        return [capacity]
    least = max(128, -(-SMALLEST // slot))
    each = min(capacity, max(least, -(-capacity // 8)))
    first = [each]
    while first[0] >= 2 * least:
        half = first[0] // 2
        first[:1] = [half, first[0] - half]
    rest = capacity - each
    return first + [each] * (rest // each) + [rest % each] * (rest % each > 0)


SMALLEST = 2**19
"""Bytes of keys and values: of fewer, a buffer of their own takes as long as it spares."""


def growing(
    groups: int, width: int, dtype: DTypeLike, marks: tuple[Int[Array, "B S"], ...]
) -> GrowingCache:
    """Before the first token. marks: of empty slots."""
    batch, capacity = marks[0].shape
    slots = sizes(capacity, 2 * batch * groups * width * jnp.dtype(dtype).itemsize)

    def room(n: int) -> Float[Array, "B G s K"]:
        return jnp.zeros((batch, groups, n, width), dtype)

    buffers = tuple(Buffer(room(n), room(n)) for n in slots)
    return GrowingCache(buffers, marks, jnp.zeros(batch, jnp.int32))


def append(
    state: GrowingCache | None, new: Kept, shards: Shards | None
) -> tuple[list[Part[Kept]], GrowingCache | None]:
    """The entries of the past followed by a piece's, in parts; and the state after.

    Without a state there is none, and one part. With shards, every one has the entries of all, and
    the queries are its own.

    Raises ValueError for a piece that no cache of this size could hold.
    """
    begin = seqpar.index(shards) * new.k.shape[1]
    new = jax.tree.map(lambda a: seqpar.gather(a, shards), new)
    if state is None:
        return [Part(new, begin, None)], None
    length = new.k.shape[1]
    fits(length, state.marks[0].shape[1])
    at, put = state.used[0], jax.lax.dynamic_update_slice_in_dim
    fields: Any = new
    k, v, *rest = fields
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    marks = tuple(put(old, mark, at, 1) for old, mark in zip(state.marks, rest, strict=True))
    first, buffers, parts = 0, [], []
    for old in state.buffers:
        buffer = Buffer(_put(old.k, k, at - first), _put(old.v, v, at - first))
        here = slice(first, first + buffer.k.shape[2])
        some = _entries(type(new), [buffer], [mark[:, here] for mark in marks])
        parts.append(Part(some, at + begin - first, at + length > first))
        buffers.append(buffer)
        first = here.stop
    if length > FEW:  # many queries are worth a copy, and a program for each buffer is not
        parts = [Part(_entries(type(new), buffers, marks), at + begin, None)]
    return parts, GrowingCache(tuple(buffers), marks, state.used + length)


def _entries(kind: Any, buffers: Sequence[Buffer], marks: Sequence[Int[Array, "B S"]]) -> Any:
    """Of these buffers, by token."""
    k, v = (jnp.concatenate(each, axis=2).swapaxes(1, 2) for each in zip(*buffers, strict=True))
    return kind(k, v, *marks)


def _put(
    old: Shaped[Array, "B G s X"], new: Shaped[Array, "B G T X"], at: Int[Array, ""]
) -> Shaped[Array, "B G s X"]:
    """The buffer with what falls into it of a piece from its slot `at` on, which may lie outside.

    As many slots are written as the piece could fill; those that it does not reach get what they
    had, so that the buffer is changed in place.
    """
    s, T = old.shape[2], new.shape[2]
    n = min(s, T)
    begin = jnp.clip(at, 0, s - n)
    index = begin - at + jnp.arange(n)
    take = jax.lax.dynamic_slice_in_dim
    if T > 1:
        new = jnp.pad(new, [(0, 0), (0, 0), (n, n), (0, 0)])
        new = take(new, begin - at + n, n, 2)
    here = ((index >= 0) & (index < T))[:, None]
    new = jnp.where(here, new, take(old, begin, n, 2))
    return jax.lax.dynamic_update_slice_in_dim(old, new, begin, 2)


def over(parts: list[Part[Kept]], attend: Callable[[Kept, Index], Answer]) -> Answer:
    """One softmax over all parts, from `attend(entries, offset)` of each that is reached.

    Reading in a branch has a second use: elsewhere XLA fuses a cache's update into each of its
    readers, and then copies the cache for each.
    """
    found: Answer | None = None
    for part in parts:
        found = _with(found, part, attend)
    assert found is not None
    return found


def _with(
    before: Answer | None, part: Part[Kept], attend: Callable[[Kept, Index], Answer]
) -> Answer:
    """What earlier parts answer, joined with this part's answer."""

    def read() -> Answer:
        answer = attend(part.entries, part.offset)
        return answer if before is None else merge(before, answer)

    def unread() -> Answer:
        if before is not None:
            return before
        o, lse = jax.eval_shape(read)
        return jnp.zeros(o.shape, o.dtype), jnp.full(lse.shape, MASK_VALUE)

    return read() if part.reached is None else jax.lax.cond(part.reached, read, unread)
