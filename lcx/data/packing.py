"""From documents to rows of equal length, in an endless, shuffled, resumable stream.

A document is BOS and its tokens. Where it is cut, the last target of a piece is the first input of
the next: every token is a target exactly once, and none is lost at a cut. An input's position is
its true distance from the document's BOS.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int, Integer

from lcx import cache
from lcx.data.documents import Documents
from lcx.data.tokenizers import Tokenizer
from lcx.progress import counted

BINS = 64
"""Rows that are packed together. More of them leave less padding, and make a longer first step."""


@dataclass(frozen=True)
class Tokens:
    """The token ids of some documents, end to end, in a file of the cache that is read as needed.

    Document d is `ids[bounds[d] : bounds[d + 1]]`, its BOS first.
    """

    ids: Integer[np.ndarray, " tokens"]
    bounds: Int[np.ndarray, " documents_and_one"]

    @classmethod
    def of(cls, documents: Documents, tokenizer: Tokenizer) -> "Tokens":
        """Encodes every document, or finds them encoded."""
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)

        def make(folder: Path) -> None:
            folder.mkdir()
            bounds = [0]
            with (folder / "ids").open("wb") as file:
                for document in counted(documents, len(documents), "tokenizing"):
                    ids = np.append(np.int32(tokenizer.bos), tokenizer.encode(document.text))
                    file.write(ids.astype(dtype).tobytes())
                    bounds.append(bounds[-1] + len(ids))
            np.save(folder / "bounds.npy", np.array(bounds))

        key = cache.Digest(documents.fingerprint, tokenizer.fingerprint)
        folder = cache.once(cache.folder() / "tokens" / str(key), make)
        return cls(np.memmap(folder / "ids", dtype, "r"), np.load(folder / "bounds.npy"))

    def document(self, index: int) -> Int[np.ndarray, " n"]:
        """Ids (int32) of one document, without BOS."""
        start, end = self.bounds[index : index + 2]
        return self.ids[start + 1 : end].astype(np.int32)


class Pieces:
    """The documents, cut into pieces of at most `length` inputs: a source for grain."""

    def __init__(self, tokens: Tokens, length: int):
        self._tokens = tokens
        self._length = length
        # Every id but a document's last is an input. A document of BOS alone gives no piece.
        inputs = np.diff(tokens.bounds) - 1
        self._ends = np.cumsum(-(-inputs // length))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Int[np.ndarray, " n"]]:
        document = int(np.searchsorted(self._ends, index, side="right"))
        before = self._ends[document - 1] if document else 0
        offset = (index - int(before)) * self._length
        start, end = (int(bound) for bound in self._tokens.bounds[document : document + 2])
        inputs = min(self._length, end - start - offset - 1)
        positions = np.arange(offset, offset + inputs, dtype=np.int32)
        return {"address": start + offset + np.arange(inputs), "positions": positions}


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
    ):
        self._ids, self._address, self._real = ids, address, real

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, T)."""
        return self._address.shape

    def __len__(self) -> int:
        return len(self._address)

    def __getitem__(self, where: Any) -> Int[np.ndarray, "..."]:
        """Ids, and 0 where there is padding."""
        real = self._real[where]
        ids = self._ids[np.where(real, self._address[where], 0)]
        return np.where(real, ids, 0).astype(np.int32)

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
        raise ValueError("every document of the split is empty: there is nothing to pack")
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
            "targets": Lookup(tokens.ids, address + 1, segments > 0),
            "segments": segments,
            "positions": rows["positions"],
        }

    return packed.batch(batch).map(look_up)
