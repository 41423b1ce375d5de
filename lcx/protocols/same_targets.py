"""The same spans of text after contexts of every length."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lcx.protocols.base import (
    CONTEXTS,
    EvaluationProtocol,
    Excerpt,
    Ids,
    Score,
    Text,
    check_contexts,
    with_bos,
)


@dataclass(frozen=True)
class SameTargets(EvaluationProtocol):
    """The same spans of text at every context length: only what is seen before them varies.

    A span is a stretch of bytes of a document, the same whatever the tokenizer. Scored are the
    tokens that cover it; where one sticks out at an end, its whole loss and all its bytes count.
    They are read in windows of c tokens, of which the last c / 4 at most are scored: each is
    predicted from three quarters of c to c tokens.

    Spans lie at random places of documents chosen at random, where the longest context fits. Left
    out are spans of which a part stands word for word in the training split, and those that stand
    in the split more than once (see `lcx.data.targets`).
    """

    contexts: tuple[int, ...] = CONTEXTS
    span: int = 256
    """Bytes of a span."""
    spans: int = 2
    """At most so many in a document."""
    documents: int | None = 20
    split: Literal["validation", "test"] = "test"
    seed: int = 0
    unit: Literal["tokens", "bytes"] = "tokens"
    """What `contexts` count. In bytes, c bytes of text and BOS."""
    before: int | None = None
    """Bytes before every span; None: what the longest context takes with this tokenizer. Where
    tokenizers are compared they need the same number, that all may find room for the same spans."""

    def __post_init__(self):
        check_contexts(type(self).__name__, self.contexts, self.documents)
        for name in ("span", "spans"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be at least 1, not {getattr(self, name)}"
                )
        if self.before is not None and self.before < self.contexts[-1]:
            raise ValueError(
                f"{type(self).__name__}: before={self.before} bytes cannot hold the longest "
                f"context, {self.contexts[-1]} {self.unit}"
            )

    @property
    def length(self) -> int:
        return self.contexts[-1] if self.unit == "tokens" else 1

    @property
    def same_targets(self) -> bool:
        return True

    @property
    def words(self) -> str:
        return (
            f"Every variant predicts the same spans of {self.span} bytes, at random places of "
            f"documents chosen at random, from at most as many {self.unit} as the context length "
            "says, and at least three quarters of them. Only the context varies, so points "
            "compare along one curve and from curve to curve. Spans that stand in the training "
            "text too, or in another span, are left out."
        )

    def excerpts(self, text: Text, bos: int) -> Iterator[Excerpt]:
        at = np.arange(len(text.ids)) if self.unit == "tokens" else text.starts
        for span in text.spans:
            first, last = covering(text.starts, *span)
            for c in self.contexts:
                room = c - (self.unit == "tokens")  # BOS is a token
                begin = first
                while begin < last:
                    end = min(max(int(np.searchsorted(at, at[begin] + c / 4)), begin + 1), last)
                    seen = int(np.searchsorted(at, at[end - 1] - room))
                    read = with_bos(bos, text.ids[seen:end])
                    yield Excerpt(read, (Score(c, 1 + begin - seen, 1 + end - seen),))
                    begin = end


def covering(starts: Ids, first: int, last: int) -> tuple[int, int]:
    """From bytes [first, last) to the tokens [first, last) that cover them."""
    return int(np.searchsorted(starts, first, side="right")) - 1, int(np.searchsorted(starts, last))
