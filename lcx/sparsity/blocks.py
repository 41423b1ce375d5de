"""A document cut into blocks, for sparsities that see the own block and something of earlier ones.

Blocks are counted from a document's first token in the row or stream, so that every document has
the same blocks wherever it is packed. A block that is complete is put into a store, of all the
row's documents in turn; what is not yet complete is seen as tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lcx.ops.attention import attention
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Affine
from lcx.sparsity import past
from lcx.sparsity.protocol import Request


class Tail(NamedTuple):
    """The last tokens."""

    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G V"]
    segments: Int[Array, "B S"]
    """The block of each: the index of its first token in the row; -1 where a slot is empty."""


class Store(NamedTuple):
    """Complete blocks, of all the row's documents in turn; the first `count` are there."""

    k: Float[Array, "B N kept G K"]
    v: Float[Array, "B N kept G V"]
    document: Int[Array, "B N"]
    """The index of its first token in the row; -1 where a slot is empty."""
    count: Int[Array, " B"]


class BlocksState(NamedTuple):
    """The last tokens, and the blocks that are complete."""

    tail: Tail
    rank: Int[Array, " B"]
    """How many tokens of the document there were."""
    read: Int[Array, " B"]
    """How many tokens of the row there were."""
    store: Store


class Stored(NamedTuple):
    """What a piece's queries may see of complete blocks."""

    before: Int[Array, "B T"]
    """How many of the store's blocks were complete before each query's own began."""
    document: Int[Array, "B T"]
    """The document of each query: as the store's `document`, the index of its first token."""


def empty(
    batch: int, capacity: int, block: int, kept: int, groups: int, width: int, dtype: DTypeLike
) -> BlocksState:
    """The last block - 1 tokens, and room for `kept` tokens of each complete block."""
    blocks = max(1, capacity // block)
    k, v, _, segments = past.empty(batch, block - 1, groups, width, dtype)
    store = jnp.zeros((batch, blocks, kept, groups, width), dtype)
    return BlocksState(
        tail=Tail(k, v, segments),
        rank=jnp.zeros(batch, jnp.int32),
        read=jnp.zeros(batch, jnp.int32),
        store=Store(
            k=store,
            v=jnp.zeros_like(store),
            document=jnp.full((batch, blocks), -1, jnp.int32),
            count=jnp.zeros(batch, jnp.int32),
        ),
    )


def attend(
    asked: Request, block: int, state: BlocksState
) -> tuple[tuple[Float[Array, "B T H V"], Float[Array, "B T H"]], Stored, BlocksState]:
    """Attention within each query's own block; what it may see of others; and the state after.

    asked: with positions encoded. Raises ValueError for a piece that no state of this size could
    hold.
    """
    q, k, v, ctx, _, softcap, _ = asked
    length, old, shards = q.shape[1], state.store, ctx.shards
    whole = seqpar.length(length, shards)
    room = (old.k.shape[1] + 1) * block - 1
    if whole > room:
        raise ValueError(f"a piece of {whole} tokens exceeds the state's {room}")
    rank, _ = past.ranks(ctx, state.rank)
    begin = state.read[:, None] + seqpar.index(shards) * length
    index = jnp.arange(length, dtype=jnp.int32) + begin
    # An own block, and a document, are known by the index of their first token
    own, document = index - rank % block, index - rank
    seen, tail = past.slide(state.tail, Tail(k, v, own), shards)
    near = attention(
        *(q, seen.k, seen.v),
        offset=block - 1,
        window=block,
        softcap=softcap,
        segments=(own, seen.segments),
        kernels=ctx.kernels,
    )

    # Blocks that end in this piece go where the store is free.
    ends = rank % block == block - 1
    count = ends.sum(axis=1, dtype=jnp.int32)
    free = seqpar.entering(Affine(jnp.ones_like(count), count), old.count, shards)
    number = jnp.cumsum(ends, axis=1, dtype=jnp.int32) + free[:, None]
    most = -(-length // block)
    (at,) = jax.vmap(lambda row: jnp.nonzero(row, size=most, fill_value=length))(ends)
    kept = old.k.shape[2]
    # the block that ends at token t of the piece ends at t + block - 1 of what is seen
    tokens = at[..., None] + jnp.arange(block - kept, block)
    slots = jnp.where(at < length, jnp.arange(most) + free[:, None], old.k.shape[1])
    slots = seqpar.gather(slots, shards)

    def put(store, new):
        new = seqpar.gather(new, shards)
        return jax.vmap(lambda s, n, i: s.at[i].set(n, mode="drop"))(store, new, slots)

    def take(x):
        return jax.vmap(lambda x, i: x.at[i].get(mode="clip"))(x, tokens)

    first = jnp.take_along_axis(document, jnp.minimum(at, length - 1), axis=1)
    store = Store(
        k=put(old.k, take(seen.k)),
        v=put(old.v, take(seen.v)),
        document=put(old.document, first),
        count=seqpar.last(number[:, -1], shards),
    )
    rank_after = seqpar.last(rank[:, -1] + 1, shards)
    after = BlocksState(tail, rank_after, state.read + whole, store)
    return near, Stored(number - ends, document), after
