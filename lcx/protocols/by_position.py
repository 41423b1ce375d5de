"""One pass over each document."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lcx.protocols.base import (
    CONTEXTS,
    EvaluationProtocol,
    Excerpt,
    Text,
    check_contexts,
    with_bos,
)


@dataclass(frozen=True)
class ByPosition(EvaluationProtocol):
    """One pass over the start of each document; the point c is the mean over its own positions.

    The point c averages the tokens that follow at least the previous context and fewer than c
    tokens, so points have different targets: early tokens are harder, whatever a model does with
    its context.
    """

    contexts: tuple[int, ...] = CONTEXTS
    split: Literal["validation", "test"] = "test"
    documents: int | None = None
    seed: int = 0

    def __post_init__(self):
        check_contexts("ByPosition", self.contexts, self.documents)

    @property
    def length(self) -> int:
        return self.contexts[-1]

    @property
    def words(self) -> str:
        return (
            "Each document is read once from its start. A point averages the tokens that follow "
            "at least the previous context length and fewer than its own, so different points "
            "score different tokens, and early ones are harder whatever a model does with its "
            "context."
        )

    def excerpts(self, text: Text, bos: int) -> Iterator[Excerpt]:
        edges = (0, *self.contexts)
        points = zip(edges, self.contexts, strict=False)
        scores = tuple(score for a, c in points for score in text.scores(c, a, c, seen=0))
        if scores:
            yield Excerpt(with_bos(bos, text.ids[: self.length]), scores)
