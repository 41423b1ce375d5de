"""How perplexity against context length is measured: which tokens a model sees, which it predicts.

A protocol cuts a document into windows. Every window begins with the document mark (BOS), as
documents do in training, and counts its positions from 0. A context of c tokens is what the last
scored token of a window is predicted from, the mark among them: no scored token sees more. So a
model that was trained on rows of c tokens has been trained for a context of c.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)

Ids = Int[np.ndarray, "_"]


class Text(NamedTuple):
    """A document to measure on."""

    name: str
    ids: Ids
    """Its tokens, without BOS."""
    starts: Ids
    """The byte at which each token begins."""
    spans: tuple[tuple[int, int], ...] = ()
    """Bytes [first, last) that are to be scored, for `SameTargets`."""

    @property
    def parts(self) -> int:
        """How many stretches of it are scored: its spans, or the whole as one."""
        return len(self.spans) or 1


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
        """At most this many, chosen at random; None: all that are long enough."""
        ...

    @property
    def seed(self) -> int:
        """Of every choice at random."""
        ...

    @property
    def length(self) -> int:
        """Tokens a document must have."""
        ...

    def windows(self, text: Text, bos: int) -> Iterator[Window]:
        """The windows of one document of at least `length` tokens."""
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
    """What `contexts` count. In bytes, c bytes of text and the mark."""
    before: int | None = None
    """Bytes before every span; None: what the longest context takes with this tokenizer. Where
    tokenizers are compared they need the same number, that all may find room for the same spans."""

    def __post_init__(self):
        _check("SameTargets", self.contexts, self.documents)
        for name in ("span", "spans"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"SameTargets: {name} must be at least 1, not {getattr(self, name)}"
                )
        if self.before is not None and self.before < self.contexts[-1]:
            raise ValueError(
                f"SameTargets: before={self.before} bytes cannot hold the longest context, "
                f"{self.contexts[-1]} {self.unit}"
            )

    @property
    def length(self) -> int:
        return self.contexts[-1] if self.unit == "tokens" else 1

    def windows(self, text: Text, bos: int) -> Iterator[Window]:
        at = np.arange(len(text.ids)) if self.unit == "tokens" else text.starts
        for span in text.spans:
            first, last = covering(text.starts, *span)
            for c in self.contexts:
                room = c - (self.unit == "tokens")  # the mark is a token
                begin = first
                while begin < last:
                    end = min(max(int(np.searchsorted(at, at[begin] + c / 4)), begin + 1), last)
                    seen = int(np.searchsorted(at, at[end - 1] - room))
                    read = _marked(bos, text.ids[seen:end])
                    yield Window(read, (Score(c, 1 + begin - seen, 1 + end - seen),))
                    begin = end


def covering(starts: Ids, first: int, last: int) -> tuple[int, int]:
    """From bytes [first, last) to the tokens [first, last) that cover them."""
    return int(np.searchsorted(starts, first, side="right")) - 1, int(np.searchsorted(starts, last))


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
    seed: int = 0

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

    def windows(self, text: Text, bos: int) -> Iterator[Window]:
        for c in self.contexts:
            scored = 0
            while scored < self.length:
                end = min(scored + self.stride if scored else c, self.length)
                read = _marked(bos, text.ids[max(0, end - c) : end])
                yield Window(read, (Score(c, len(read) - (end - scored), len(read)),))
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
    seed: int = 0

    def __post_init__(self):
        _check("ByPosition", self.contexts, self.documents)

    @property
    def length(self) -> int:
        return self.contexts[-1]

    def windows(self, text: Text, bos: int) -> Iterator[Window]:
        edges = (0, *self.contexts)
        scores = (Score(c, 1 + a, 1 + c) for a, c in zip(edges, self.contexts, strict=False))
        yield Window(_marked(bos, text.ids[: self.length]), tuple(scores))


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
    seed: int = 0

    def __post_init__(self):
        _check("Recall", self.contexts, self.documents)
        if any(c % 4 for c in self.contexts):
            raise ValueError(f"Recall: a pair takes 4 tokens; not all of {self.contexts} do")

    @property
    def length(self) -> int:
        return self.contexts[-1] // 2

    def windows(self, text: Text, bos: int) -> Iterator[Window]:
        for c in self.contexts:
            pairs = text.ids[: c // 2]
            asked = asked_again(np.random.default_rng(c), pairs)
            read = _marked(bos, np.concatenate([pairs, asked]))
            yield Window(read, tuple(Score(c, i, i + 1) for i in range(c // 2 + 2, c + 1, 2)))


def asked_again(rng: np.random.Generator, pairs: Ids) -> Ids:
    """The same pairs in another order."""
    return rng.permutation(pairs.reshape(-1, 2)).ravel()


PROTOCOLS: dict[str, type] = {c.__name__: c for c in (SameTargets, Sliding, ByPosition, Recall)}
