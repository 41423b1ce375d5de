"""Reading texts of any length in pieces, several side by side, with a model's state.

Memory grows with the state, never with the square of a text. One compilation of each of two
functions serves all long texts; shorter ones are read in one piece of a quarter or a sixteenth of
`PIECE`, each of which takes a compilation more.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from lcx.model import LM
from lcx.parallel.mesh import BATCH, Mesh, make_mesh, place
from lcx.parallel.mesh import ROWS as ROWS_OF_MESH
from lcx.parallel.seqpar import REPLICATED, SHARDED, sharded
from lcx.parallel.xla import known_options
from lcx.types import Batch, Params, State, tree_bytes

PIECE = 512
"""Tokens read at a time, of a text that has as many."""
ROWS = 8
"""At most this many texts of PIECE tokens side by side; as many more as they are shorter."""
STATE_BYTES = 2**28
"""Fewer texts at a time where their states would take more than this (256 MB)."""

SPARING = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""CPUs, too, cut a layer's weights out of the stack when it is its turn, not all at once."""


class Streamer:
    """A model and its parameters on a mesh. To be used while `streamer.mesh` is set."""

    def __init__(self, model: LM, params: Params, cut: Mesh):
        self._model, self._params, self._cut = model, params, cut
        self.mesh = make_mesh(cut)
        self.whole = NamedSharding(self.mesh, REPLICATED)
        """Where an array lies that every device has whole."""
        self.tokens = NamedSharding(self.mesh, BATCH)
        """Where a piece [B, t] lies."""
        shards = cut.shards

        def start(lengths: Int[Array, " B"], capacity: int) -> State:
            return model.init_state(len(lengths), capacity, lengths)

        def advance(params: Params, piece: Batch, state: State):
            out = model.hidden(params, piece, state, shards)
            return out.x, out.state

        # every shard of a sequence keeps the state whole; its rows lie where the tokens' do
        self._rows = NamedSharding(self.mesh, PartitionSpec(ROWS_OF_MESH))
        self._start: Any = jax.jit(start, static_argnums=1, out_shardings=self._rows)
        self._advance: Any = jax.jit(
            sharded(advance, shards, (REPLICATED, SHARDED, REPLICATED), (SHARDED, REPLICATED)),
            donate_argnums=2,
            out_shardings=(self.tokens, self._rows),
            compiler_options=known_options(SPARING),
        )

    def piece(self, tokens: int) -> int:
        """In pieces of how many tokens so many are read: a multiple of the shards."""
        sizes = (PIECE // 16, PIECE // 4, PIECE)
        size = next((size for size in sizes if size >= tokens), PIECE)
        return -(-size // self._cut.seq) * self._cut.seq

    def rows(self, piece: int, capacity: int) -> int:
        """How many texts are read side by side."""
        one = jax.eval_shape(partial(self._model.init_state, 1, capacity))
        room = STATE_BYTES // max(tree_bytes(one), 1)
        rows = int(np.clip(room, 1, ROWS * PIECE // piece))
        return -(-rows // self._cut.rows) * self._cut.rows

    def start(self, lengths: Int[np.ndarray, " B"], capacity: int) -> State:
        """The state before texts that will have become `lengths` long, of at most `capacity`."""
        return self._start(place(lengths, self.whole), capacity)

    def advance(
        self,
        tokens: Int[np.ndarray, "B t"],
        positions: Int[np.ndarray, "B t"],
        state: State,
        segments: Int[np.ndarray, "B t"] | None = None,
    ) -> tuple[Float[Array, "B t D"], State]:
        """What the head reads of a piece, and the state after it. The state given is used up."""
        piece = Batch(place(tokens, self.tokens), place(positions, self.tokens))
        if segments is not None:
            piece = piece._replace(segments=place(segments, self.tokens))
        return self._advance(self._params, piece, state)

    def lower(self, rows: int, piece: int, capacity: int) -> tuple[Any, Any, State]:
        """`advance` of such texts, lowered; and the shapes of what it reads and of the state.

        Parameters may be shapes.
        """
        there: Any = jax.ShapeDtypeStruct((rows, piece), jnp.int32, sharding=self.tokens)
        lengths = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=self.whole)
        state = self._start.eval_shape(lengths, capacity)
        state = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._rows), state
        )
        return self._advance.lower(self._params, Batch(there, there), state), there, state

    def prefill(
        self,
        texts: Sequence[Int[np.ndarray, "_"]],
        lengths: Int[np.ndarray, " B"],
        capacity: int,
        whole: bool = False,
    ) -> tuple[Float[Array, "B D"], State, Float[Array, "B t D"] | None]:
        """What the head reads of the last token of each text, and the state after it.

        lengths: of each text with what will follow at most, for position schemes that depend on it.
        capacity: tokens that a text and what follows it, and the padding, have room in.
        whole: whether what the head reads of all tokens is kept, the padding in front among them.

        Ragged texts are padded in front, so that all end together; what is padded is another
        document, which no layer sees from a text (`Batch.segments`), and the states are those of
        the texts alone.
        """
        there = np.array([[len(text)] for text in texts], np.int32)
        sizes = self.pieces(int(there.max()))
        total = sum(sizes)
        tokens = np.zeros((len(texts), total), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[total - len(text) :] = text
        positions = np.arange(total, dtype=np.int32) - (total - there)
        segments = (positions >= 0).astype(np.int32)
        positions = np.maximum(positions, 0)
        state = self.start(lengths, capacity)
        first, x, kept = 0, None, []
        for size in sizes:
            at = slice(first, first + size)
            x, state = self.advance(tokens[:, at], positions[:, at], state, segments[:, at])
            first += size
            if whole:
                kept.append(x)
        assert x is not None
        return x[:, -1], state, jnp.concatenate(kept, axis=1) if whole else None

    def pieces(self, tokens: int) -> list[int]:
        """In pieces of which sizes so many tokens are read, or a few more: there are three."""
        small, middle, large = PIECE // 16, PIECE // 4, PIECE
        left = -(-tokens // small) * small
        found = []
        for size in (large, middle, small):
            found += [size] * (left // size)
            left %= size
        return found

    def read(
        self, texts: Sequence[Int[np.ndarray, "_"]], rows: int, piece: int, capacity: int
    ) -> Iterator[Float[Array, "B t D"]]:
        """What the head reads of each piece of texts side by side, one after the other.

        Ragged texts, and rows without one, are padded at the end: padding reaches no token of a
        text, but what is read of it means nothing.
        """
        lengths = np.ones(rows, np.int32)
        lengths[: len(texts)] = [len(text) for text in texts]
        pieces = -(-max(lengths) // piece)
        tokens = np.zeros((rows, pieces * piece), np.int32)
        for row, text in zip(tokens, texts, strict=False):
            row[: len(text)] = text
        state = self.start(lengths, capacity)
        for first in range(0, pieces * piece, piece):
            # padding stands where the last token does: at a position that there is
            at = np.minimum(first + np.arange(piece, dtype=np.int32), lengths[:, None] - 1)
            x, state = self.advance(tokens[:, first : first + piece], at, state)
            yield x
