"""How a model is measured: which tokens it sees, which it predicts, or what it writes.

A protocol cuts a document into excerpts. Every excerpt begins with BOS, as documents do in
training, and counts its positions from 0. A context of c tokens is what the last scored token of
an excerpt is predicted from, BOS among them: no scored token sees more. So a model that was trained
on rows of c tokens has been trained for a context of c.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lcx.decoding import Decoding, Search
from lcx.protocols.measures import ACCURACY, BITS, PERPLEXITY, Measure, token_scores
from lcx.repetition import RepetitionGuard
from lcx.types import Ids

CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Text(NamedTuple):
    """A document to measure on."""

    name: str
    ids: Ids
    """Its tokens, without BOS."""
    starts: Ids
    """The byte at which each token begins."""
    spans: tuple[tuple[int, int], ...] = ()
    """Bytes [first, last) that are to be scored, for `SameTargets`."""
    scored: Bool[np.ndarray, "_"] | None = None
    """Which tokens may be scored: of a conversation the answers, say. None: all."""

    def scores(self, context: int, first: int, last: int, seen: int) -> "tuple[Score, ...]":
        """Of its tokens [first, last), those that may be scored, in runs.

        They are in an excerpt of BOS and its tokens from `seen` on.
        """
        if self.scored is None:
            return (Score(context, 1 + first - seen, 1 + last - seen),)
        runs = np.flatnonzero(np.diff(np.pad(self.scored[first:last].astype(np.int8), 1)))
        runs = (1 + first - seen + runs).reshape(-1, 2)
        return tuple(Score(context, a, b) for a, b in runs.tolist())

    @property
    def parts(self) -> int:
        """How many stretches of it are scored: its spans, or the whole as one."""
        return len(self.spans) or 1


class Score(NamedTuple):
    """The tokens [first, last) of an excerpt, predicted at this context length."""

    context: int
    first: int
    last: int


class Excerpt(NamedTuple):
    """A text for the model to read from its start, and the parts of it that are scored."""

    tokens: Ids
    scores: tuple[Score, ...]


class Writes(NamedTuple):
    """How a model writes on from the beginning of each excerpt."""

    decoding: Decoding | Search
    guard: RepetitionGuard | None
    """What is done to texts that loop."""
    samples: int
    """Texts after each prompt."""
    seed: int
    """Of the first text; each has one of its own."""


Samples = Sequence[Sequence[Ids]]
"""Of each prompt the texts that were written after it, all of one length."""


class Counted(NamedTuple):
    """What was found in texts of one length."""

    by_prompt: list[dict[str, float]]
    """What the measures average, of each prompt; NaN where nothing is known."""
    of_all: Mapping[str, float]
    """Measures of all texts as one, by `Measure.sums`."""


class Terms(NamedTuple):
    """What the points of a protocol's curves are called, on a page and in a terminal."""

    axis: str = "context length"
    """What they stand against."""
    short: str = "context"
    of: str = "context"
    """Of what the axis counts tokens, or bytes."""
    document: str = "document"
    """What intervals are over."""
    part: str = "span"
    """What is measured of one."""
    reference: str | None = None
    """Whose own numbers stand beside the variants', if anybody's."""


@runtime_checkable
class EvaluationProtocol(Protocol):
    """Turns documents into excerpts, and says what is measured on them.

    Protocols derive from this class. What are settings of theirs are fields with defaults.
    """

    @property
    def contexts(self) -> tuple[int, ...]:
        """Where the points of its curves stand, ascending."""
        ...

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

    @property
    def words(self) -> str:
        """What it does, for the reader of a report's page."""
        ...

    def excerpts(self, text: Text, bos: int) -> Iterator[Excerpt]:
        """The excerpts of one document of at least `length` tokens."""
        ...

    # What follows is so for most protocols, which derive from this class; others have their own.

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is measured. A report is about the first; where the tokenizers of its variants
        differ, about the first per byte."""
        return PERPLEXITY, BITS, ACCURACY

    def scores(
        self, logits: Float[Array, "*n vocab"], targets: Int[Array, "*n"]
    ) -> dict[str, Float[Array, "*n"]]:
        """What is made of each target, by name; `measures` average over these."""
        of = token_scores(logits, targets)
        return {"nll": of.nll, "hits": of.hit.astype(jnp.float32)}

    def per_token(
        self, tokens: Ids, scores: dict[str, Float[np.ndarray, " n"]]
    ) -> dict[str, Float[np.ndarray, " n"]]:
        """From an excerpt and its tokens' `scores` to what `measures` average over.

        Only where a score of the excerpt asks for a token does `scores` mean something there.
        """
        return scores

    @property
    def same_targets(self) -> bool:
        """Whether the targets are the same at every context length, which can then be compared."""
        return False

    @property
    def unit(self) -> Literal["tokens", "bytes"]:
        """What `contexts` count."""
        return "tokens"

    @property
    def longest(self) -> int:
        """The most tokens, BOS among them, that a model reads and writes of one text."""
        return self.contexts[-1]

    @property
    def terms(self) -> Terms:
        """What its points are called."""
        return Terms()

    @property
    def may_differ(self) -> tuple[str, ...]:
        """Fields in which variants may differ and stand on one page all the same."""
        return ()

    @property
    def writes(self) -> Writes | None:
        """None: targets are predicted. Otherwise each excerpt is a prompt, up to where its first
        score begins, and what its author wrote from there; the model writes as much."""
        return None

    @property
    def judge(self) -> str | None:
        """A variant of the same file that says how likely it finds what was written."""
        return None

    def counted(self, samples: Samples, decode: Callable[[Ids], bytes]) -> Counted:
        """What is found in texts of one length, for a protocol that `writes`."""
        raise NotImplementedError(f"{type(self).__name__} writes nothing")

    @property
    def reads(self) -> Literal["text", "pairs"]:
        """What its documents hold: text, or pairs of a key and a value (`lcx.data.MQAR`)."""
        return "text"


def check_contexts(
    name: str, contexts: tuple[int, ...], documents: int | None, field: str = "contexts"
) -> None:
    """Raise ValueError for contexts or a number of documents that mean nothing."""
    if not contexts or any(c < 1 for c in contexts) or list(contexts) != sorted(set(contexts)):
        raise ValueError(f"{name}: {field} must be positive and increasing, not {contexts}")
    if documents is not None and documents < 1:
        raise ValueError(f"{name}: documents must be at least 1, not {documents}")


def with_bos(bos: int, ids: Ids) -> Ids:
    """BOS, then the tokens."""
    return np.concatenate([np.array([bos], np.int32), ids])


def check_measures(protocol: EvaluationProtocol) -> None:
    """Raise ValueError for a measure that averages what the protocol's `scores` do not give.

    Where text is written, nothing is known before there is some.
    """
    if protocol.writes is not None:
        return
    logits = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    scores = jax.eval_shape(protocol.scores, logits, jax.ShapeDtypeStruct((1,), jnp.int32))
    two = np.zeros(2, np.float32)
    given = protocol.per_token(np.zeros(2, np.int32), dict.fromkeys(scores, two))
    for measure in protocol.measures:
        if measure.sums not in given:
            raise ValueError(
                f"{type(protocol).__name__}: {measure.name} averages {measure.sums!r}, but "
                f"`scores` gives {', '.join(map(repr, given))}"
            )
