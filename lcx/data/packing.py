"""From documents to rows of equal length, in an endless, shuffled, resumable stream.

A document is BOS and its tokens. Where it is cut, the last target of a piece is the first input of
the next: every token is a target exactly once, and none is lost at a cut. An input's position is
its true distance from the document's BOS.
"""

from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Int, Integer

from lcx.data import cache
from lcx.data.documents import Documents
from lcx.data.tokenizers import Tokenizer

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
                for document in documents:
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
        ids = self._tokens.ids[start + offset : min(start + offset + self._length + 1, end)]
        ids = ids.astype(np.int32)
        positions = np.arange(offset, offset + len(ids) - 1, dtype=np.int32)
        return {"tokens": ids[:-1], "targets": ids[1:], "positions": positions}


def rows(
    tokens: Tokens, length: int, seed: int, epochs: int | None = None
) -> grain.IterDataset[dict[str, Int[np.ndarray, " T"]]]:
    """Rows of `length` packed pieces; `epochs=None` is without end.

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
        length_struct=dict.fromkeys(("tokens", "targets", "positions"), length),
        num_packing_bins=BINS,
        seed=seed,
        # grain numbers positions from the piece's own start; these are carried along instead.
        meta_features=("targets", "positions"),
    )
    return packed.map(_row)


def _row(row: dict[str, Int[np.ndarray, " T"]]) -> dict[str, Int[np.ndarray, " T"]]:
    return {
        "tokens": row["tokens"],
        "targets": row["targets"],
        "segments": row["tokens_segment_ids"],
        "positions": row["positions"],
    }
