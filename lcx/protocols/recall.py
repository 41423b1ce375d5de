"""How many pairs of a key and a value a model knows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lcx.protocols.base import (
    EvaluationProtocol,
    Excerpt,
    Ids,
    Score,
    Text,
    check_contexts,
    with_bos,
)
from lcx.protocols.measures import ACCURACY, PERPLEXITY, Measure


@dataclass(frozen=True)
class Recall(EvaluationProtocol):
    """Of the pairs that c tokens hold, c / 4 of them, how many does the model know?

    For `MQAR`, whose documents are pairs of a key and a value. An excerpt shows the first c / 4
    pairs and asks for each by its key, in random order; the values that follow are scored, so
    accuracy is the share of pairs that were kept.
    """

    contexts: tuple[int, ...] = (64, 128, 256, 512)
    split: Literal["validation", "test"] = "test"
    documents: int | None = None
    seed: int = 0

    def __post_init__(self):
        check_contexts("Recall", self.contexts, self.documents)
        if any(c % 4 for c in self.contexts):
            raise ValueError(f"Recall: a pair takes 4 tokens; not all of {self.contexts} do")

    @property
    def length(self) -> int:
        return self.contexts[-1] // 2

    @property
    def measures(self) -> tuple[Measure, ...]:
        return ACCURACY, PERPLEXITY

    @property
    def reads(self) -> Literal["text", "pairs"]:
        return "pairs"

    @property
    def words(self) -> str:
        return (
            "A document holds random pairs of a key and a value, a quarter of the context length "
            "of them, then asks for each by its key, in random order. Only the values that can be "
            "known are scored: accuracy is the share of pairs that the model kept."
        )

    def excerpts(self, text: Text, bos: int) -> Iterator[Excerpt]:
        for c in self.contexts:
            pairs = text.ids[: c // 2]
            asked = asked_again(np.random.default_rng(c), pairs)
            read = with_bos(bos, np.concatenate([pairs, asked]))
            yield Excerpt(read, tuple(Score(c, i, i + 1) for i in range(c // 2 + 2, c + 1, 2)))


def asked_again(rng: np.random.Generator, pairs: Ids) -> Ids:
    """The same pairs in another order."""
    return rng.permutation(pairs.reshape(-1, 2)).ravel()
