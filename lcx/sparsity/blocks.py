"""A document cut into blocks, for sparsities that see the own block and something of earlier ones.

Blocks are counted from a document's first token in the row or stream, so that every document has
the same blocks wherever it is packed. A block that is complete is put into a store, of all the
row's documents in turn; what is not yet complete is seen as tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lcx import seqpar
from lcx.ops.attention import attention
from lcx.seqpar import Affine
from lcx.sparsity.past import cache, ranks, slide
from lcx.types import Context, State


class Stored(NamedTuple):
    """What a piece's queries may see of complete blocks."""

    before: Int[Array, "B T"]
    """How many of the store's blocks were complete before each query's own began."""
    document: Int[Array, "B T"]
    """The document of each query: as the store's `document`, the index of its first token."""


def empty(
    batch: int, capacity: int, block: int, kept: int, groups: int, width: int, dtype: Any
) -> State:
    """The last block - 1 tokens, and room for `kept` tokens of each complete block."""
    blocks = max(1, capacity // block)
    state = cache(batch, block - 1, groups, width, dtype)
    del state["positions"]
    store = jnp.zeros((batch, blocks, kept, groups, width), dtype)
    return state | {
        "rank": jnp.zeros(batch, jnp.int32),
        "length": jnp.zeros((), jnp.int32),
        "blocks": {
            "k": store,
            "v": jnp.zeros_like(store),
            "document": jnp.full((batch, blocks), -1, jnp.int32),
            "count": jnp.zeros(batch, jnp.int32),
        },
    }


def see(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G V"],
    ctx: Context,
    block: int,
    softcap: float | None,
    state: State,
) -> tuple[tuple[Float[Array, "B T H V"], Float[Array, "B T H"]], Stored, State]:
    """Attention within each query's own block; what it may see of others; and the state after.

    Raises ValueError for a piece that no state of this size could hold.
    """
    length, old, shards = q.shape[1], state["blocks"], ctx.shards
    whole = seqpar.length(length, shards)
    room = (old["k"].shape[1] + 1) * block - 1
    if whole > room:
        raise ValueError(f"a piece of {whole} tokens exceeds the state's {room}")
    rank, _ = ranks(ctx, state["rank"])
    begin = state["length"] + seqpar.index(shards) * length
    index = jnp.arange(length, dtype=jnp.int32) + begin
    # An own block, and a document, are known by the index of their first token
    own, document = index - rank % block, index - rank
    new = {"k": k, "v": v, "segments": own}
    seen, tail = slide({n: state[n] for n in new}, new, shards)
    near = attention(
        *(q, seen["k"], seen["v"]),
        offset=block - 1,
        window=block,
        softcap=softcap,
        segments=(own, seen["segments"]),
    )

    # Blocks that end in this piece go where the store is free.
    ends = rank % block == block - 1
    count = ends.sum(axis=1, dtype=jnp.int32)
    free = seqpar.entering(Affine(jnp.ones_like(count), count), old["count"], shards)
    number = jnp.cumsum(ends, axis=1, dtype=jnp.int32) + free[:, None]
    most = -(-length // block)
    (at,) = jax.vmap(lambda row: jnp.nonzero(row, size=most, fill_value=length))(ends)
    kept = old["k"].shape[2]
    # the block that ends at token t of the piece ends at t + block - 1 of what is seen
    tokens = at[..., None] + jnp.arange(block - kept, block)
    slots = jnp.where(at < length, jnp.arange(most) + free[:, None], old["k"].shape[1])
    slots = seqpar.gather(slots, shards)

    def put(store, new):
        new = seqpar.gather(new, shards)
        return jax.vmap(lambda s, n, i: s.at[i].set(n, mode="drop"))(store, new, slots)

    def take(x):
        return jax.vmap(lambda x, i: x.at[i].get(mode="clip"))(x, tokens)

    blocks = {n: put(old[n], take(seen[n])) for n in ("k", "v")}
    first = jnp.take_along_axis(document, jnp.minimum(at, length - 1), axis=1)
    blocks |= {"document": put(old["document"], first), "count": seqpar.last(number[:, -1], shards)}
    rank_after = seqpar.last(rank[:, -1] + 1, shards)
    after = tail | {"rank": rank_after, "length": state["length"] + whole, "blocks": blocks}
    return near, Stored(number - ends, document), after
