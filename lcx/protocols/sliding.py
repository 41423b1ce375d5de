"""Windows that slide over a document."""

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
class Sliding(EvaluationProtocol):
    """Windows of c tokens that advance by `stride` through the first `span` tokens of a document.

    Each window scores its last `stride` tokens (the first scores all it holds), so a token is
    scored once, after c - stride to c tokens; of a conversation the answers alone. Press et al.
    2022, appendix B; used by YaRN and LongLoRA.
    """

    contexts: tuple[int, ...] = CONTEXTS
    stride: int = 64
    span: int | None = None
    """None: the longest context."""
    split: Literal["validation", "test"] = "test"
    documents: int | None = None
    seed: int = 0

    def __post_init__(self):
        check_contexts("Sliding", self.contexts, self.documents)
        if not 1 <= self.stride <= self.contexts[0]:
            raise ValueError(
                f"Sliding: the stride must be in [1, {self.contexts[0]}], the shortest context, "
                f"not {self.stride}"
            )
        if self.span is not None and self.span < self.contexts[-1]:
            raise ValueError(
                f"Sliding: the span {self.span} is shorter than the longest context, "
                f"{self.contexts[-1]}"
            )

    @property
    def length(self) -> int:
        return self.span or self.contexts[-1]

    @property
    def same_targets(self) -> bool:
        return True

    @property
    def words(self) -> str:
        return (
            f"Windows as long as the context advance by {self.stride} tokens through each "
            f"document. Each scores its last {self.stride} tokens, and the first all it holds: "
            "every token is scored once, and after the first window sees at most "
            f"{self.stride} tokens less than the whole context."
        )

    def excerpts(self, text: Text, bos: int) -> Iterator[Excerpt]:
        for c in self.contexts:
            scored = 0
            while scored < self.length:
                end = min(scored + self.stride if scored else c, self.length)
                seen = max(0, end - c)
                if scores := text.scores(c, scored, end, seen):
                    yield Excerpt(with_bos(bos, text.ids[seen:end]), scores)
                scored = end
