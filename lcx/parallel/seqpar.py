"""Sequence parallelism: the only places where shards of one sequence speak to each other.

A sequence of T tokens lies on `count` devices in equal contiguous pieces, everywhere in the
project. The function given to `sharded` sees one piece, [B, T / count, ...], as if it were all
there is; what it needs of the other pieces it gets by

    halo     the last few tokens of the pieces before        (token shift, convolution, window)
    carry    the state that the pieces before leave behind    (every recurrence)
    ring     the others' arrays, one neighbour at a time      (softmax attention)
    gather   the others' arrays, all at once                  (softmax attention, few KV heads)
    total    the sum of what all have                         (a row's log-probability)

Each of them takes `shards`; None says that the sequence lies in one piece, and then nothing moves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Shaped

AXIS = "seq"
"""The mesh axis along which sequences are cut."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shards:
    """How many pieces a sequence lies in: at least two."""

    count: int
    one_device: bool = False
    """The pieces are tried on one device (`stacked`)."""


def sharded(
    call: Callable, shards: Shards | None, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`call` on each shard of its arguments along the axis "seq" of the mesh that is set.

    The specs say which arguments and results are cut along "seq", and where; the mesh's other axes
    are left to the compiler, as anywhere else.
    """
    if shards is None:
        return call
    # Values are not tracked as equal or different across shards (check_vma): arguments that are
    # not cut get the sum of the shards' gradients all the same.
    return jax.shard_map(
        call, in_specs=in_specs, out_specs=out_specs, axis_names={AXIS}, check_vma=False
    )


REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(None, AXIS)
"""Specs of arrays that every shard has whole, and of [B, T, ...] cut along T."""


def stacked(call: Callable, shards: Shards, in_axes: Any) -> Callable[..., Any]:
    """`sharded`, on one device, to try it where there is no other: small arrays, results [B T ...].

    in_axes: as of `jax.vmap`: None for what every shard has whole, 0 for [B T ...] to be cut.
    """

    def cut(a: Shaped[Array, "B T ..."]) -> Shaped[Array, "n B t ..."]:
        return jnp.stack(jnp.split(a, shards.count, axis=1))

    def on_one_device(*args):
        given = (
            arg if axis is None else jax.tree.map(cut, arg)
            for arg, axis in zip(args, in_axes, strict=True)
        )
        out = jax.vmap(call, in_axes, axis_name=AXIS)(*given)
        return jax.tree.map(lambda a: jnp.concatenate(list(a), axis=1), out)

    return on_one_device


def index(shards: Shards | None) -> int | Int[Array, ""]:
    """Which piece this is, counted from 0."""
    return 0 if shards is None else lax.axis_index(AXIS)


def length(local: int, shards: Shards | None) -> int:
    """T, of pieces of `local` tokens."""
    return local if shards is None else local * shards.count


def _shift(tree: Any, by: int, shards: Shards) -> Any:
    """What the shard `by` places before has; zeros where there is none."""
    pairs = [(i, i + by) for i in range(shards.count - by)]
    if not shards.one_device:
        return jax.tree.map(lambda a: lax.ppermute(a, AXIS, pairs), tree)
    # vmap wants every piece to be sent somewhere
    whole = [(i, (i + by) % shards.count) for i in range(shards.count)]
    there = index(shards) >= by
    return jax.tree.map(
        lambda a: jnp.where(there, lax.ppermute(a, AXIS, whole), jnp.zeros_like(a)), tree
    )


def last(tree: Any, shards: Shards | None) -> Any:
    """What the last shard has, on every shard."""
    if shards is None:
        return tree
    mine = index(shards) == shards.count - 1
    return jax.tree.map(lambda a: lax.psum(jnp.where(mine, a, jnp.zeros_like(a)), AXIS), tree)


def total(x: Shaped[Array, "..."], shards: Shards | None) -> Shaped[Array, "..."]:
    """The sum of what the shards have, on every shard."""
    return x if shards is None else lax.psum(x, AXIS)


def gather(x: Shaped[Array, "B t ..."], shards: Shards | None) -> Shaped[Array, "B T ..."]:
    """The whole sequence, on every shard."""
    return x if shards is None else lax.all_gather(x, AXIS, axis=1, tiled=True)


def halo(
    x: Shaped[Array, "B t ..."], before: Shaped[Array, "B n ..."], shards: Shards | None
) -> Shaped[Array, "B n ..."]:
    """The n tokens in front of this shard; `before` are those in front of the sequence.

    n may exceed the length of a shard: then more shards than the neighbour send.
    """
    n, t = before.shape[1], x.shape[1]
    if shards is None or n == 0:
        return before
    hops = min(-(-n // t), shards.count - 1)
    pieces = [_shift(x[:, max(0, hop * t - n) :], hop, shards) for hop in range(hops, 0, -1)]
    sent = jnp.concatenate(pieces, axis=1)[:, -n:]
    # the first shards have fewer tokens in front of them than n: the rest is the end of `before`
    there = jnp.minimum(index(shards) * t, sent.shape[1])
    sent = jnp.pad(sent, [(0, 0), (n - sent.shape[1], 0)] + [(0, 0)] * (x.ndim - 2))
    room = jnp.pad(before, [(0, 0), (0, n)] + [(0, 0)] * (x.ndim - 2))
    rest = lax.dynamic_slice_in_dim(room, there, n, axis=1)
    mine = (jnp.arange(n) >= n - there).reshape(1, n, *[1] * (x.ndim - 2))
    return jnp.where(mine, sent.astype(before.dtype), rest)


def replicate(x: Shaped[Array, "..."], shards: Shards | None) -> Shaped[Array, "..."]:
    """x in one piece along the mesh's other axes, too.

    For tables that are looked up in: inside a function on shards XLA's partitioner cannot look up
    in one that is cut (jax 0.10.2: "Check failed: partition_group_list").
    """
    return x if shards is None else lax.with_sharding_constraint(x, REPLICATED)


class Affine(NamedTuple):
    """What a piece of text does to a state: factor * state + added."""

    factor: Shaped[Array, "..."]
    added: Shaped[Array, "..."]


def scaled(first: Affine, then: Affine) -> Affine:
    """`first`, then `then`, whose factors multiply element by element."""
    return Affine(then.factor * first.factor, then.factor * first.added + then.added)


def multiplied(first: Affine, then: Affine) -> Affine:
    """`first`, then `then`, whose factors are matrices [..., K, K]."""
    return Affine(then.factor @ first.factor, then.factor @ first.added + then.added)


def carry(compose: Callable[[Any, Any], Any], before: Any, own: Any, shards: Shards | None) -> Any:
    """What lies in front of this shard.

    own: what this shard does; before: what came before the sequence; both pytrees that
    `compose(first, then)`, which is associative, puts together. In log2(count) steps between pairs
    of shards (Hillis and Steele 1986), so that no shard ever holds more than two such summaries.
    """
    if shards is None:
        return before
    here, reach, step = index(shards), own, 1
    while step < shards.count:
        reach = _choose(here >= step, compose(_shift(reach, step, shards), reach), reach)
        step *= 2
    return _choose(here > 0, compose(before, _shift(reach, 1, shards)), before)


def entering(
    own: Affine,
    state: Shaped[Array, "..."],
    shards: Shards | None,
    compose: Callable[[Affine, Affine], Affine] = scaled,
) -> Shaped[Array, "..."]:
    """The state in front of this shard, of a sequence that begins at `state`; own: what each does.

    The state after the sequence is what the last shard makes of its own (`last`).
    """
    # only what has been added so far is read: any factor would do
    return carry(compose, Affine(own.factor, state), own, shards).added


def _choose(this: Any, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(this, x, y), a, b)


def ring(tree: Any, shards: Shards) -> Any:
    """What the shard before has; the first has the last one's. After `count` times all is home."""
    pairs = [(i, (i + 1) % shards.count) for i in range(shards.count)]
    return jax.tree.map(lambda a: lax.ppermute(a, AXIS, pairs), tree)


# A causal query sees what lies before it, so that late shards would have more to do than early
# ones. With the sequence in 2 count halves of shards, the pairs (i, 2 count - 1 - i) all come to
# the same: softmax attention exchanges halves, works, and gives them back.


def zigzag_halves(i: int | Int[Array, ""], shards: Shards) -> tuple[Any, Any]:
    """Which two halves shard i works on, of 2 count; the same rule for every shard."""
    return i, 2 * shards.count - 1 - i


def zigzag_indices(
    i: int | Int[Array, ""], local: int, shards: Shards
) -> tuple[Int[Array, " h"], Int[Array, " h"]]:
    """The indices in the sequence of the tokens that shard i works on: of its two halves."""
    low, high = (half * (local // 2) + jnp.arange(local // 2) for half in zigzag_halves(i, shards))
    return low, high


def to_zigzag(x: Shaped[Array, "B t ..."], shards: Shards) -> Shaped[Array, "B t ..."]:
    """The two halves that this shard is to work on, for its own two; t is even."""
    even, odd = _destinations(shards)
    first, second = jnp.split(x, 2, axis=1)
    first = lax.ppermute(first, AXIS, list(enumerate(even)))
    second = lax.ppermute(second, AXIS, list(enumerate(odd)))
    # half number i came with the first halves if i is even
    return _swapped(jnp.concatenate([first, second], axis=1), shards)


def from_zigzag(x: Shaped[Array, "B t ..."], shards: Shards) -> Shaped[Array, "B t ..."]:
    """The inverse of `to_zigzag`: every shard has its own tokens again."""
    even, odd = _destinations(shards)
    first, second = jnp.split(_swapped(x, shards), 2, axis=1)
    first = lax.ppermute(first, AXIS, [(there, here) for here, there in enumerate(even)])
    second = lax.ppermute(second, AXIS, [(there, here) for here, there in enumerate(odd)])
    return jnp.concatenate([first, second], axis=1)


def _swapped(x: Shaped[Array, "B t ..."], shards: Shards) -> Shaped[Array, "B t ..."]:
    """The second half before the first, on every second shard."""
    return jnp.where(index(shards) % 2 == 1, jnp.roll(x, x.shape[1] // 2, axis=1), x)


def _destinations(shards: Shards) -> tuple[list[int], list[int]]:
    """The shards that work on each shard's first half, and on each one's second."""
    worker = {half: i for i in range(shards.count) for half in zigzag_halves(i, shards)}
    in_order = [worker[half] for half in range(2 * shards.count)]
    return in_order[::2], in_order[1::2]
