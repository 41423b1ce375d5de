"""Multi-query associative recall: random pairs of a key and a value, then each key again.

    BOS  k1 v1 k2 v2 ... kn vn   k5 v5 k2 v2 ...

Every value of the second half can be known, and only from the first. Nothing but memory is asked
for: how many pairs does a model keep?  Arora et al. 2023 (Zoology, arXiv:2312.04927), section 4;
here the keys come again in random order with nothing between them, so n pairs take 4n tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from lcx.cache import Digest
from lcx.data.task import UNSCORED, Targets
from lcx.protocols import EvaluationProtocol, Text
from lcx.protocols.recall import asked_again
from lcx.types import Ids

if TYPE_CHECKING:
    import grain


@dataclass(frozen=True)
class MQAR:
    """Multi-query associative recall, drawn anew for every row (Arora et al. 2023).

    Ids 0 to vocab / 2 - 1 are keys, those above are values, `vocab` itself is BOS. Only the values
    that can be known are scored. Measured by the protocol `Recall`.
    """

    pairs: tuple[int, ...] = (4, 8, 16, 32)
    """Training draws one of these for each example."""
    vocab: int = 8192
    """Keys and values together."""

    def __post_init__(self):
        if not self.pairs or any(n < 1 for n in self.pairs):
            raise ValueError(f"MQAR: pairs must be positive numbers, not {self.pairs}")
        if self.vocab % 2 or max(self.pairs) > self.vocab // 2:
            raise ValueError(
                f"MQAR: vocab {self.vocab} must be even and hold {max(self.pairs)} keys and as "
                f"many values: at least {2 * max(self.pairs)}"
            )

    def load(self) -> "RecallTask":
        """Nothing has to be found or prepared."""
        return RecallTask(self)


class RecallTask:
    """What training and evaluation ask of `MQAR`, as `Corpus` answers it for text."""

    def __init__(self, data: MQAR):
        self.data = data
        self.tokenizer = _Symbols(data.vocab)
        self.notes = ()

    @property
    def fingerprint(self) -> str:
        """Equal for two tasks exactly if their evaluation documents are."""
        return str(Digest("MQAR", str(self.data.vocab)))

    def describe(self) -> dict[str, str]:
        """What a result says of where its texts come from; training may differ in its pairs."""
        return {"source": f"MQAR(vocab={self.data.vocab})", "tokenizer": "symbols"}

    def check(self, length: int, protocol: EvaluationProtocol) -> None:
        """Raise ValueError where rows of `length` or the protocol do not fit."""
        needed = 4 * max(self.data.pairs)
        if length < needed:
            raise ValueError(
                f"{max(self.data.pairs)} pairs take {needed} tokens; train.length is {length}"
            )
        if protocol.reads != "pairs":
            raise ValueError(f"MQAR is measured by Recall, not by {type(protocol).__name__}")
        self.targets(protocol)

    def tokens(self, split: str) -> None:
        """Rows are drawn without end."""

    def batches(
        self, length: int, batch: int, seed: int, split: str = "train"
    ) -> "grain.IterDataset[dict[str, Int[np.ndarray, 'B T']]]":
        """An endless stream of rows, as `Corpus.batches`; what cannot be known has target -1."""
        import grain

        rows = grain.MapDataset.source(_Rows(self.data, length, (_ROWS_OF[split], seed)))
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return rows.to_iter_dataset(options).batch(batch)

    def targets(self, protocol: EvaluationProtocol) -> Targets:
        """Documents of as many ids as it takes: pairs of a key and a value, none twice.

        Raises ValueError where the vocabulary holds fewer.
        """
        tokens = protocol.length
        if tokens > self.data.vocab:
            raise ValueError(
                f"{tokens // 2} pairs take a vocabulary of {tokens}; MQAR has {self.data.vocab}"
            )
        texts = []
        for i in range(min(DOCUMENTS, protocol.documents or DOCUMENTS)):
            rng = np.random.default_rng((_DOCUMENTS_OF[protocol.split], i))
            ids = _pairs(rng, tokens // 2, self.data.vocab)
            texts.append(Text(f"{protocol.split}/{i}", ids, 2 * np.arange(len(ids))))
        return Targets(texts, {})


DOCUMENTS = 64
"""Documents of a split."""

_DOCUMENTS_OF = {"validation": 0, "test": 1}
_ROWS_OF = {"train": 2, "validation": 3, "test": 4}
"""First numbers of the seeds that a split's documents, and its rows, are drawn from."""


class _Symbols:
    """What the model and the evaluation ask of a tokenizer: ids are symbols of two bytes each."""

    def __init__(self, vocab: int):
        self.vocab_size = vocab + 1
        self.bos = vocab
        self.byte_lengths = np.where(np.arange(vocab + 1) == self.bos, 0, 2).astype(np.int32)


class _Rows:
    """Rows of `length`, each filled with examples drawn from (*seed, index): a source for grain."""

    def __init__(self, data: MQAR, length: int, seed: tuple[int, ...]):
        self._data, self._length, self._seed = data, length, seed

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Int[np.ndarray, " T"]]:
        rng = np.random.default_rng((*self._seed, index))
        names = ("tokens", "targets", "segments", "positions")
        row = {name: np.zeros(self._length, np.int32) for name in names}
        at = 0
        for segment, example in enumerate(self._examples(rng), start=1):
            end = at + len(example) - 1
            if end > self._length:
                return row
            known = np.arange(len(example) - 1) % 2 == 1  # a key is read, its value comes
            known &= np.arange(len(example) - 1) > len(example) // 2
            row["tokens"][at:end] = example[:-1]
            row["targets"][at:end] = np.where(known, example[1:], UNSCORED)
            row["segments"][at:end] = segment
            row["positions"][at:end] = np.arange(len(example) - 1)
            at = end
        return row

    def _examples(self, rng: np.random.Generator) -> Iterator[Ids]:
        vocab = self._data.vocab
        while True:
            pairs = _pairs(rng, int(rng.choice(self._data.pairs)), vocab)
            yield np.concatenate([np.array([vocab], np.int32), pairs, asked_again(rng, pairs)])


def _pairs(rng: np.random.Generator, n: int, vocab: int) -> Ids:
    """k1 v1 ... kn vn, no key and no value twice."""
    half = vocab // 2
    keys = rng.choice(half, n, replace=False)
    values = half + rng.choice(half, n, replace=False)
    return np.stack([keys, values], axis=1).ravel().astype(np.int32)
