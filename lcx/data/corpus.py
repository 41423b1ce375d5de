"""The `Data` of an experiment, and the `Corpus` that it loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int

from lcx import spec
from lcx.cache import Digest
from lcx.data.documents import SPLITS, Documents, split
from lcx.data.duplicates import with_near_copies
from lcx.data.sources import PythonCorpus, Source
from lcx.data.task import Targets
from lcx.data.tokenizers import Bytes, Tokenizer, TokenizerSpec
from lcx.data.within import PIECE, split_within
from lcx.protocols import EvaluationProtocol

if TYPE_CHECKING:
    import grain

    from lcx.data import packing


@dataclass(frozen=True)
class Data:
    """What a model is trained and measured on: a source, a tokenizer and the shares held out.

    `validation` and `test` are the shares held out: of documents (expected, not of bytes), or under
    `split="within"` of the bytes of every document.
    """

    source: Source = PythonCorpus()
    tokenizer: TokenizerSpec = Bytes()
    validation: float = 0.05
    test: float = 0.1
    at_least: int = 0
    """Tokens: shorter documents are not trained on. What is held out stays as it is."""
    alike: float | None = 0.5
    """Documents at least about so alike go to the same split: Jaccard similarity, see
    `lcx.data.duplicates`. To look for them takes some tenths of a second a megabyte, once; None:
    not looked for."""
    split: Literal["documents", "within"] = "documents"
    """What is held out: whole documents, or pieces of each, for texts that are few and long. A
    piece is a document of its own, and so is what is trained on between two. Near copies stay
    whole."""
    piece: int | None = None
    """Under `split="within"`, the bytes of a piece held out for testing, about; None: 32,768. It
    has to hold the longest context that is evaluated, and a span."""

    def __post_init__(self):
        if not isinstance(self.source, Source):
            raise ValueError(f"Data: no source: {self.source!r}; write TextFiles('*.txt'), say")
        if not isinstance(self.tokenizer, TokenizerSpec):
            raise ValueError(f"Data: no tokenizer: {self.tokenizer!r}; write Bytes(), say")
        if self.alike is not None and not 0 < self.alike <= 1:
            raise ValueError(f"Data: alike must lie in (0, 1], or be None, not {self.alike}")
        if self.at_least < 0:
            raise ValueError(f"Data: at_least cannot be negative, not {self.at_least}")
        if not (self.validation >= 0 and self.test >= 0 and self.validation + self.test < 1):
            raise ValueError(
                f"Data: validation {self.validation} and test {self.test} must be shares of the "
                "documents, not negative, that leave some for training"
            )

        if self.split == "within" and self.validation > (1 - self.test) / 2:
            raise ValueError(
                f"Data: validation {self.validation} has no room beside test {self.test} in one "
                f"document: at most {(1 - self.test) / 2:g}, or split='documents'"
            )
        if self.piece is not None and (self.split != "within" or self.piece < 1):
            raise ValueError(
                f"Data: piece={self.piece} is the bytes of a held-out piece, at least 1, and goes "
                "with split='within'"
            )

    def load(self) -> "Corpus":
        """Finds the documents and makes the tokenizer ready."""
        splits = self.splits()
        notes = splits["train"].notes
        tokenizer = self.tokenizer.load(splits["train"])
        if splits["train"].paired:
            from lcx.data.paired import PairCorpus

            return PairCorpus(self, splits, tokenizer, notes)
        return Corpus(self, splits, tokenizer, notes)

    def splits(self) -> dict[str, Documents]:
        """The documents, by split."""
        documents = self.source.documents()
        if documents.paired and (self.split == "within" or self.at_least):
            raise ValueError(
                f"Data: {spec.describe(self.source)} has pairs, which stay whole: split='within' "
                "and at_least are for single texts"
            )
        if self.alike is not None:
            documents = with_near_copies(documents, self.alike)
        if self.split == "within":
            return split_within(documents, self.validation, self.test, self.piece or PIECE)
        return split(documents, self.validation, self.test)


class Corpus:
    """Documents in three splits and the tokenizer that reads them, as `Data.load()` gives them."""

    def __init__(
        self,
        data: Data,
        splits: dict[str, Documents],
        tokenizer: Tokenizer,
        notes: Sequence[str] = (),
    ):
        self.data = data
        self.tokenizer = tokenizer
        self.notes = notes
        self._splits = splits
        self._targets: dict[EvaluationProtocol, Targets] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two corpora exactly if documents, splits and tokenizer are."""
        digest = Digest(str(self.data.validation), str(self.data.test), self.tokenizer.fingerprint)
        digest.add(*(self._splits[name].fingerprint for name in SPLITS))
        return str(digest)

    def describe(self) -> dict[str, str]:
        """What a result says of where its texts come from."""
        return {
            "source": spec.describe(self.data.source),
            "tokenizer": spec.describe(self.data.tokenizer),
        }

    def check(self, length: int, protocol: EvaluationProtocol) -> None:
        """Raise ValueError where rows of `length` or the protocol do not fit."""
        if protocol.reads != "text":
            raise ValueError(
                f"{type(protocol).__name__} measures MQAR; for text take SameTargets(), say"
            )
        self.documents("train")
        if self.data.at_least:
            self._read("train")
        self.targets(protocol)

    def documents(self, split: str) -> Documents:
        """The documents of "train", "validation" or "test". Raises ValueError if there is none."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        if not len(self._splits[split]):
            raise ValueError(self._none_in(split))
        return self._splits[split]

    def _none_in(self, split: str) -> str:
        data, total = self.data, sum(map(len, self._splits.values()))
        if data.split == "within":
            what, others = "pieces", ""
        else:
            what, others = "documents", "; data.split='within' holds out pieces of long ones"
        return (
            f"none of the {total} {what} falls in split {split!r} (validation {data.validation}, "
            f"test {data.test}): hold out another share, or add documents{others}"
        )

    def _read(self, split: str) -> "packing.Tokens":
        """The tokens of a split; to train on, of the documents that are long enough."""
        from lcx.data import packing

        documents, least = self.documents(split), self.data.at_least
        tokens = packing.Tokens.of(documents, self.tokenizer)
        if split != "train" or not least:
            return tokens
        lengths = np.diff(tokens.bounds) - 1
        if not len(chosen := np.flatnonzero(lengths >= least)):
            raise ValueError(
                f"no document to train on has {least} tokens (data.at_least); the longest of "
                f"{len(documents)} has {lengths.max()}"
            )
        return packing.Tokens.of(documents.select(chosen.tolist()), self.tokenizer)

    def tokens(self, split: str) -> int:
        """How many tokens a split has. Raises ValueError if it has none."""
        return len(self._read(split).ids)

    def scored(self, split: str) -> int:
        """How many of them a model is trained to predict. Raises ValueError if it has none."""
        tokens = self._read(split)
        if tokens.scored is None:
            return len(tokens.ids) - (len(tokens.bounds) - 1)
        return int(np.count_nonzero(tokens.scored))

    def batches(
        self, length: int, batch: int, seed: int, split: str = "train"
    ) -> "grain.IterDataset[dict[str, Int[np.ndarray, 'B T'] | packing.Lookup]]":
        """An endless stream of rows to train on; `iter()` of it has `get_state` and `set_state`.

        A batch is a dict of int32 arrays `[batch, length]`: `tokens`, `targets` (the next token of
        the same document; -1 where the document says that it is not scored), `segments` (1, 2, ...
        by document within the row; 0 is padding) and `positions` (within the document: its BOS is
        0; a long document is cut, and what is cut off counts on). The first two are read from the
        file when they are indexed. Each token of each document is a target once an epoch, but
        pieces without one that is scored are left out. The same arguments give the same stream, and
        the state is a small dict that JSON can hold.
        """
        from lcx.data import packing

        if length < 1 or batch < 1 or seed < 0:
            raise ValueError(f"length {length} and batch {batch}: at least 1; seed {seed}: not < 0")
        return packing.batches(self._read(split), length, batch, seed)

    def targets(self, protocol: EvaluationProtocol) -> Targets:
        """The documents that the protocol measures on, and which spans of them are scored.

        Raises ValueError, which tells the longest document there is, if none is long enough.
        """
        from lcx.data.targets import TooShortError, choose

        if protocol not in self._targets:
            documents, train = self.documents(protocol.split), self._splits["train"]
            try:
                self._targets[protocol] = choose(protocol, documents, train, self.tokenizer)
            except TooShortError as error:
                if self.data.split != "within":
                    raise
                piece = self.data.piece or PIECE
                raise ValueError(
                    f"{error}. Pieces of {piece} bytes are held out, or shorter ones of short "
                    "documents: data.piece is for longer ones, data.test for more"
                ) from None
        return self._targets[protocol]
