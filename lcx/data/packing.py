"""From documents to rows of equal length, in an endless, shuffled, resumable stream.

A document is BOS and its tokens. Where it is cut, the last target of a piece is the first input of
the next: every token is a target exactly once, and none is lost at a cut. An input's position is
its true distance from the document's BOS. Where documents say which of their tokens are scored,
the others are targets of -1, and a piece without any that is scored is left out: it would teach
nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int, Integer

from lcx import cache
from lcx.data.documents import Document, Documents
from lcx.data.encoding import encode, scored_of
from lcx.data.task import UNSCORED
from lcx.data.tokenizers import Tokenizer
from lcx.progress import counted
from lcx.types import Ids

BINS = 64
"""Rows that are packed together. More of them leave less padding, and make a longer first step."""


@dataclass(frozen=True)
class Tokens:
    """The token ids of some documents, end to end, in a file of the cache that is read as needed.

    Document d is `ids[bounds[d] : bounds[d + 1]]`, its BOS first.
    """

    ids: Integer[np.ndarray, " tokens"]
    bounds: Int[np.ndarray, " documents_and_one"]
    scored: Bool[np.ndarray, " tokens"] | None = None
    """Which of them a model is trained to predict; None: all."""

    @classmethod
    def of(cls, documents: Documents, tokenizer: Tokenizer) -> "Tokens":
        """Encodes every document, or finds them encoded.

        Raises ValueError, which names the document, where one cannot be encoded as its marks say.
        """
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)

        def make(folder: Path) -> None:
            folder.mkdir()
            bounds = [0]
            with (folder / "ids").open("wb") as file, (folder / "scored").open("wb") as scored:
                for document in counted(enumerate(documents), len(documents), "tokenizing"):
                    ids, counts = _encoded(*document, documents, tokenizer)
                    file.write(ids.astype(dtype).tobytes())
                    if documents.marked:
                        scored.write(counts.tobytes())
                    bounds.append(bounds[-1] + len(ids))
            np.save(folder / "bounds.npy", np.array(bounds))

        key = cache.Digest(documents.fingerprint, tokenizer.fingerprint)
        folder = cache.once(cache.folder() / "tokens" / str(key), make)
        scored = np.memmap(folder / "scored", bool, "r") if documents.marked else None
        return cls(np.memmap(folder / "ids", dtype, "r"), np.load(folder / "bounds.npy"), scored)

    def document(self, index: int) -> Int[np.ndarray, " n"]:
        """Ids (int32) of one document, without BOS."""
        start, end = self.bounds[index : index + 2]
        return self.ids[start + 1 : end].astype(np.int32)

    def scored_of(self, index: int) -> Bool[np.ndarray, " n"] | None:
        """Which tokens of one document are scored, without BOS; None: all."""
        start, end = self.bounds[index : index + 2]
        return None if self.scored is None else np.array(self.scored[start + 1 : end])


def _encoded(
    index: int, document: Document, documents: Documents, tokenizer: Tokenizer
) -> tuple[Ids, Bool[np.ndarray, " n"]]:
    """Ids of a document, its BOS first, and which of them are scored."""
    marks = documents.marks(index)
    try:
        ids = encode(document.text, marks, tokenizer)
        scored = scored_of(ids, marks, tokenizer)
        if marks.scored and not scored.any():
            raise ValueError("no token begins in what is to be scored of it")
    except ValueError as error:
        if not documents.marked:
            raise
        raise ValueError(f"{document.name}: {error}") from None
    return np.append(np.int32(tokenizer.bos), ids), np.append(False, scored)


class Pieces:
    """The documents, cut into pieces of at most `length` inputs: a source for grain."""

    def __init__(self, tokens: Tokens, length: int):
        self._tokens = tokens
        self._length = length
        # Every id but a document's last is an input. A document of BOS alone gives no piece.
        inputs = np.diff(tokens.bounds) - 1
        self._ends = np.cumsum(-(-inputs // length))
        self._kept = None if tokens.scored is None else self._with_scores(tokens.scored)

    def _with_scores(self, scored: Bool[np.ndarray, " tokens"]) -> Int[np.ndarray, " pieces"]:
        """The pieces of which a target is scored."""
        count = int(self._ends[-1])
        if not count:
            return np.zeros(0, np.int64)
        first = self._places(np.arange(count))[1]
        # each piece's targets end where the next one's begin, or with its document; BOS is none
        return np.flatnonzero(np.logical_or.reduceat(scored, first + 1))

    def _places(
        self, index: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Of pieces: the document, the address of the first input, and its place in there."""
        document = np.searchsorted(self._ends, index, side="right")
        before = np.where(document > 0, self._ends[document - 1], 0)
        offset = (index - before) * self._length
        return document, self._tokens.bounds[document] + offset, offset

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Int[np.ndarray, " n"]]:
        if self._kept is not None:
            index = int(self._kept[index])
        document, address, offset = (int(n[0]) for n in self._places(np.array([index])))
        inputs = min(self._length, int(self._tokens.bounds[document + 1]) - address - 1)
        positions = np.arange(offset, offset + inputs, dtype=np.int32)
        return {"address": address + np.arange(inputs), "positions": positions}


class Lookup:
    """An array [B, T] of token ids, each of which is read from the file when it is asked for.

    Rows are packed by the lengths of their pieces alone. So every process knows all rows, and
    reads the tokens of its own: `lookup[rows, columns]` is a real array.
    """

    dtype = np.dtype(np.int32)

    def __init__(
        self,
        ids: Integer[np.ndarray, " tokens"],
        address: Int[np.ndarray, "B T"],
        real: Bool[np.ndarray, "B T"],
        scored: Bool[np.ndarray, " tokens"] | None = None,
    ):
        self._ids, self._address, self._real, self._scored = ids, address, real, scored

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, T)."""
        return self._address.shape

    def __len__(self) -> int:
        return len(self._address)

    def __getitem__(self, where: Any) -> Int[np.ndarray, "..."]:
        """Ids, 0 where there is padding, and -1 where one is not scored."""
        real = self._real[where]
        address = np.where(real, self._address[where], 0)
        ids = np.where(real, self._ids[address], 0).astype(np.int32)
        if self._scored is None:
            return ids
        return np.where(real & ~self._scored[address], np.int32(UNSCORED), ids)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def batches(
    tokens: Tokens, length: int, batch: int, seed: int, epochs: int | None = None
) -> grain.IterDataset[dict[str, Any]]:
    """Batches of rows of `length` packed pieces; `epochs=None` is without end.

    All pieces are shuffled anew in each epoch: pieces of one document are seldom neighbours. Rows
    are packed by best fit, so pieces of two epochs can share a row where one epoch ends.

    The iterator's state is a place in the stream of pieces and a row among those packed from there.
    """
    pieces = Pieces(tokens, length)
    if not len(pieces):
        nothing = "is empty" if tokens.scored is None else "has nothing that is scored"
        raise ValueError(f"every document of the split {nothing}: there is nothing to pack")
    stream = (
        grain.MapDataset.source(pieces)
        .seed(seed)
        .shuffle()
        .repeat(epochs)
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
    packed = grain.experimental.BestFitPackIterDataset(
        stream,
        length_struct=dict.fromkeys(("address", "positions"), length),
        num_packing_bins=BINS,
        seed=seed,
        # grain numbers positions from the piece's own start; these are carried along instead.
        meta_features=("positions",),
    )

    def look_up(rows: dict[str, Int[np.ndarray, "B T"]]) -> dict[str, Any]:
        address, segments = rows["address"], rows["address_segment_ids"]
        return {
            "tokens": Lookup(tokens.ids, address, segments > 0),
            "targets": Lookup(tokens.ids, address + 1, segments > 0, tokens.scored),
            "segments": segments,
            "positions": rows["positions"],
        }

    return packed.batch(batch).map(look_up)
