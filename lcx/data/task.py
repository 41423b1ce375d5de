"""What an experiment can be trained and measured on, as the rest of lcx sees it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from lcx.protocols import EvaluationProtocol, Text

UNSCORED = -1
"""A target that the loss leaves out."""


class Targets(NamedTuple):
    """What an evaluation measures on."""

    texts: list[Text]
    left_out: dict[str, int]
    """Spans that were looked at, and those among them that are scored nowhere, by reason."""


@runtime_checkable
class Vocabulary(Protocol):
    """What models and metrics have to know of token ids."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos(self) -> int:
        """The id that begins every document."""
        ...

    @property
    def byte_lengths(self) -> Int[np.ndarray, " vocab"]:
        """How many bytes each token stands for."""
        ...


@runtime_checkable
class Texts(Protocol):
    """Token ids to train on and to measure with, ready to use."""

    @property
    def tokenizer(self) -> Vocabulary: ...

    @property
    def fingerprint(self) -> str:
        """Equal for two exactly if they give the same documents."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Sentences on how they were found, for whoever trains on them: what was left out, say."""
        ...

    def describe(self) -> Mapping[str, str]:
        """What a result says of where its texts come from."""
        ...

    def check(self, length: int, protocol: EvaluationProtocol) -> None:
        """Raise ValueError where rows of `length` or the protocol do not fit."""
        ...

    def tokens(self, split: str) -> int | None:
        """How many tokens a split has; None: it has no end. Raises ValueError if it has none."""
        ...

    def batches(self, length: int, batch: int, seed: int, split: str = "train") -> Any:
        """An endless stream of batches; `iter()` of it has `get_state` and `set_state`.

        A batch is a dict of int32 arrays [batch, length]: `tokens`, `targets` (-1: not scored),
        `segments` (0: padding) and `positions`; or of what gives such arrays when it is indexed,
        so that each process reads its own part.
        """
        ...

    def targets(self, protocol: EvaluationProtocol) -> Targets:
        """The documents that the protocol measures on. Raises ValueError where there are none."""
        ...


@runtime_checkable
class PairedTexts(Texts, Protocol):
    """Texts whose rows 2i and 2i + 1 are a preferred answer and a rejected one to one prompt."""

    @property
    def preferred(self) -> Texts:
        """The preferred answers alone, as single texts."""
        ...

    def rows(self, length: int, split: str) -> Any:
        """The pairs of a split in order, a sequence of dicts such as batches, of arrays [2, T].

        Raises ValueError where a pair does not fit into rows of `length`.
        """
        ...

    def with_reference(self, values: Mapping[str, Float32[np.ndarray, " inputs"]]) -> "PairedTexts":
        """The same, whose batches of these splits have a `reference` [B T], 0 in padding.

        values: a number for each token of `rows` that is no padding, row after row.
        """
        ...


def places(texts: Texts, length: int, split: str) -> int | None:
    """How many tokens a split fills rows of `length` with, the padding of pairs included.

    None: it has no end. Raises ValueError where it has none.
    """
    if isinstance(texts, PairedTexts):
        return 2 * len(texts.rows(length, split)) * length
    return texts.tokens(split)


@runtime_checkable
class Task(Protocol):
    """Texts, as a spec."""

    def load(self) -> Texts:
        """Finds or makes them. Raises ValueError or FileNotFoundError where it cannot."""
        ...
