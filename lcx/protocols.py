"""How perplexity against context length is measured: which tokens a model sees, which it predicts.

A protocol cuts a long document into windows. Every window begins with the document mark (BOS), as
documents do in training, and counts its positions from 0; the mark is not counted as context.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)

Ids = Int[np.ndarray, "_"]


class Score(NamedTuple):
    """The tokens [first, last) of a window, predicted at this context length."""

    context: int
    first: int
    last: int


class Window(NamedTuple):
    """A text for the model to read from its start, and the parts of it that are scored."""

    tokens: Ids
    scores: tuple[Score, ...]


@runtime_checkable
class EvaluationProtocol(Protocol):
    """Turns documents into windows."""

    @property
    def contexts(self) -> tuple[int, ...]: ...

    @property
    def split(self) -> Literal["validation", "test"]: ...

    @property
    def documents(self) -> int | None:
        """At most this many; None: all that are long enough."""
        ...

    @property
    def length(self) -> int:
        """Tokens a document must have."""
        ...

    def windows(self, ids: Ids, bos: int) -> Iterator[Window]:
        """The windows of one document of at least `length` tokens (given without its mark)."""
        ...


def _check(name: str, contexts: tuple[int, ...], documents: int | None) -> None:
    if not contexts or any(c < 1 for c in contexts) or list(contexts) != sorted(set(contexts)):
        raise ValueError(f"{name}: contexts must be positive and increasing, not {contexts}")
    if documents is not None and documents < 1:
        raise ValueError(f"{name}: documents must be at least 1, not {documents}")


def _marked(bos: int, ids: Ids) -> Ids:
    return np.concatenate([np.array([bos], np.int32), ids])


@dataclass(frozen=True)
class SameTargets:
    """The last `targets` tokens of each document, seen after exactly the last c tokens before them.

    Only the context varies: curves of different c and of different variants compare token by
    token.
    """

    contexts: tuple[int, ...] = CONTEXTS
    targets: int = 64
    split: Literal["validation", "test"] = "test"
    documents: int | None = None
    """At most this many, in the corpus's order; None: all that are long enough."""

    def __post_init__(self):
        _check("SameTargets", self.contexts, self.documents)
        if self.targets < 1:
            raise ValueError(f"SameTargets: targets must be at least 1, not {self.targets}")

    @property
    def length(self) -> int:
        return self.contexts[-1] + self.targets

    def windows(self, ids: Ids, bos: int) -> Iterator[Window]:
        for c in self.contexts:
            text = _marked(bos, ids[len(ids) - self.targets - c :])
            yield Window(text, (Score(c, len(text) - self.targets, len(text)),))


@dataclass(frozen=True)
class Sliding:
    """Windows of c tokens that advance by `stride` through the first `span` tokens of a document.

    Each window scores its last `stride` tokens (the first scores all it holds), so a token is
    scored once, after c - stride to c tokens. Press et al. 2022, appendix B; used by YaRN and
    LongLoRA.
    """

    contexts: tuple[int, ...] = CONTEXTS
    stride: int = 64
    span: int | None = None
    """None: the longest context."""
    split: Literal["validation", "test"] = "test"
    documents: int | None = None

    def __post_init__(self):
        _check("Sliding", self.contexts, self.documents)
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

    def windows(self, ids: Ids, bos: int) -> Iterator[Window]:
        for c in self.contexts:
            scored = 0
            while scored < self.length:
                end = min(scored + self.stride if scored else c, self.length)
                text = _marked(bos, ids[max(0, end - c) : end])
                yield Window(text, (Score(c, len(text) - (end - scored), len(text)),))
                scored = end


@dataclass(frozen=True)
class ByPosition:
    """One pass over the start of each document; the point c is the mean over its own positions.

    The point c averages the tokens that follow at least the previous context and fewer than c
    tokens, so points have different targets: early tokens are harder, whatever a model does with
    its context.
    """

    contexts: tuple[int, ...] = CONTEXTS
    split: Literal["validation", "test"] = "test"
    documents: int | None = None

    def __post_init__(self):
        _check("ByPosition", self.contexts, self.documents)

    @property
    def length(self) -> int:
        return self.contexts[-1]

    def windows(self, ids: Ids, bos: int) -> Iterator[Window]:
        edges = (0, *self.contexts)
        scores = (Score(c, 1 + a, 1 + c) for a, c in zip(edges, self.contexts, strict=False))
        yield Window(_marked(bos, ids[: self.length]), tuple(scores))


@dataclass(frozen=True)
class Recall:
    """Of the pairs that c tokens hold, c / 4 of them, how many does the model know?

    For `MQAR`, whose documents are pairs of a key and a value. A window shows the first c / 4 pairs
    and asks for each by its key, in random order; the values that follow are scored, so accuracy is
    the share of pairs that were kept.
    """

    contexts: tuple[int, ...] = (64, 128, 256, 512)
    split: Literal["validation", "test"] = "test"
    documents: int | None = None

    def __post_init__(self):
        _check("Recall", self.contexts, self.documents)
        if any(c % 4 for c in self.contexts):
            raise ValueError(f"Recall: a pair takes 4 tokens; not all of {self.contexts} do")

    @property
    def length(self) -> int:
        return self.contexts[-1] // 2

    def windows(self, ids: Ids, bos: int) -> Iterator[Window]:
        for c in self.contexts:
            pairs = ids[: c // 2]
            asked = asked_again(np.random.default_rng(c), pairs)
            text = _marked(bos, np.concatenate([pairs, asked]))
            yield Window(text, tuple(Score(c, i, i + 1) for i in range(c // 2 + 2, c + 1, 2)))


def asked_again(rng: np.random.Generator, pairs: Ids) -> Ids:
    """The same pairs in another order."""
    return rng.permutation(pairs.reshape(-1, 2)).ravel()


PROTOCOLS: dict[str, type] = {c.__name__: c for c in (SameTargets, Sliding, ByPosition, Recall)}
