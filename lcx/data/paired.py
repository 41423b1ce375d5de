"""Pairs of documents as rows: an answer to a row, and the two of a pair next to each other."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Num

from lcx.data.corpus import Corpus, Data
from lcx.data.documents import SPLITS, Documents
from lcx.data.packing import Tokens
from lcx.data.task import UNSCORED, Targets
from lcx.data.tokenizers import Tokenizer
from lcx.protocols import EvaluationProtocol

if TYPE_CHECKING:
    import grain

Values = Float32[np.ndarray, " inputs"]
"""A number for each input of a split, document after document."""
Pair = dict[str, Num[np.ndarray, "2 T"]]


class PairRows:
    """The pairs of a split, each of two rows of `length`, padded at the end: a source for grain."""

    def __init__(
        self,
        tokens: Tokens,
        documents: Documents,
        length: int,
        reference: Values | None = None,
    ):
        self._tokens, self._length, self._reference = tokens, length, reference
        inputs = np.diff(tokens.bounds) - 1
        if len(over := np.flatnonzero(inputs > length)):
            pairs, worst = len(np.unique(over // 2)), int(inputs.argmax())
            raise ValueError(
                f"{pairs} of {len(inputs) // 2} pairs do not fit into rows of {length} tokens; the "
                f"longest, {documents.names[worst]}, has {inputs[worst]}: take longer rows, or "
                "leave them out (Pairs(longest=...), in bytes)"
            )
        self._begin = np.cumsum(inputs) - inputs

    def __len__(self) -> int:
        return len(self._begin) // 2

    def __getitem__(self, index: int) -> Pair:
        """`tokens`, `targets`, `segments` and `positions`, and `reference` where it is known."""
        names = ["tokens", "targets", "segments", "positions"]
        pair: Pair = {name: np.zeros((2, self._length), np.int32) for name in names}
        pair["targets"][:] = UNSCORED
        if self._reference is not None:
            pair["reference"] = np.zeros((2, self._length), np.float32)
        for row, document in enumerate((2 * index, 2 * index + 1)):
            first, last = self._tokens.bounds[document : document + 2].tolist()
            n = last - first - 1
            ids = self._tokens.ids[first:last].astype(np.int32)
            counts = True if (s := self._tokens.scored) is None else s[first + 1 : last]
            pair["tokens"][row, :n] = ids[:-1]
            pair["targets"][row, :n] = np.where(counts, ids[1:], UNSCORED)
            pair["segments"][row, :n] = 1
            pair["positions"][row, :n] = np.arange(n)
            if self._reference is not None:
                at = self._begin[document]
                pair["reference"][row, :n] = self._reference[at : at + n]
        return pair


class PairCorpus(Corpus):
    """What `Data.load()` gives where documents are paired. Measured are the preferred answers."""

    def __init__(
        self,
        data: Data,
        splits: dict[str, Documents],
        tokenizer: Tokenizer,
        notes: Sequence[str] = (),
        reference: Mapping[str, Values] | None = None,
    ):
        super().__init__(data, splits, tokenizer, notes)
        preferred = {name: splits[name].preferred() for name in SPLITS}
        self.preferred = Corpus(data, preferred, tokenizer, notes)
        self._reference = reference or {}

    def rows(self, length: int, split: str) -> PairRows:
        """The pairs of a split, in order. Raises ValueError where one does not fit into rows."""
        documents = self.documents(split)
        return PairRows(self._read(split), documents, length, self._reference.get(split))

    def with_reference(self, values: Mapping[str, Values]) -> "PairCorpus":
        """The same, whose rows of these splits have a `reference`: a number for each input."""
        return PairCorpus(self.data, self._splits, self.tokenizer, self.notes, values)

    def batches(
        self, length: int, batch: int, seed: int, split: str = "train"
    ) -> "grain.IterDataset[dict[str, Any]]":
        """An endless stream of rows, as `Corpus.batches`, of pairs that are shuffled each epoch."""
        import grain

        if batch < 2 or batch % 2:
            raise ValueError(f"a batch of {batch} rows is no whole number of pairs")
        pairs = grain.MapDataset.source(self.rows(length, split)).seed(seed).shuffle().repeat()
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return pairs.to_iter_dataset(options).batch(batch // 2).map(_by_rows)

    def targets(self, protocol: EvaluationProtocol) -> Targets:
        """The preferred answers, as documents that the protocol measures on."""
        return self.preferred.targets(protocol)


def _by_rows(pairs: dict[str, Num[np.ndarray, "n 2 T"]]) -> dict[str, Num[np.ndarray, "B T"]]:
    return {name: array.reshape(-1, array.shape[-1]) for name, array in pairs.items()}
