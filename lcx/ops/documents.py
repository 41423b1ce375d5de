"""Where the documents of a row begin, and sums over them."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Shaped

from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards


def beginnings(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The index, in its row, of the first token of each token's document; of whole rows."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    goes_on = segments[:, 1:] == segments[:, :-1]
    first = jnp.pad(jnp.where(goes_on, 0, index[1:]), ((0, 0), (1, 0)))
    return lax.cummax(first, axis=1)


def indices_and_beginnings(
    segments: Int[Array, "B t"] | None, length: int, rows: int, shards: Shards | None
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Each token's index in its whole row, and `beginnings`: 0 without segments.

    segments: of this shard's piece. length: T, of whole rows.
    """
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
    if segments is None:
        return index, jnp.zeros_like(index)
    return index, beginnings(seqpar.gather(segments, shards))


def totals(values: Int[Array, "B T"], first: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The sum of values over each token's document. first: as of `beginnings`."""
    rows = jnp.arange(len(values))[:, None]
    return jnp.zeros_like(values).at[rows, first].add(values)[rows, first]


def own_piece(whole: Shaped[Array, "B T"], shards: Shards | None) -> Shaped[Array, "B t"]:
    """This shard's piece of rows that every shard has whole."""
    local = whole.shape[1] // (1 if shards is None else shards.count)
    return lax.dynamic_slice_in_dim(whole, seqpar.index(shards) * local, local, axis=1)
