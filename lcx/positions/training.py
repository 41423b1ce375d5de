"""Positions that a model is trained at, in place of 0, 1, 2, ...: to know those of longer texts.

Made on the host for each batch, from a generator that the step's number seeds. A document's order
is kept: positions only grow, by more than one where some are skipped.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int


@runtime_checkable
class TrainingPositions(Protocol):
    """Draws the positions of a document's tokens, for one step of training."""

    @property
    def longest(self) -> int:
        """One past the largest position; texts are read as ones of this length."""
        ...

    def draw(self, rng: np.random.Generator, length: int) -> Int[np.ndarray, " T"]:
        """The positions of a document of `length` tokens, at most `longest`."""
        ...


@dataclass(frozen=True)
class Randomised:
    """Positions drawn at random from [0, longest), without replacement, and sorted.

    Ruoss et al. 2023 (arXiv:2305.16843). A model then has seen distances up to `longest`, but
    neighbours seldom at a distance of 1: the paper draws at random in evaluation, too.
    """

    longest: int

    def __post_init__(self):
        _check(self)

    def draw(self, rng: np.random.Generator, length: int) -> Int[np.ndarray, " T"]:
        return np.sort(rng.choice(self.longest, length, replace=False))


@dataclass(frozen=True)
class PoSE:
    """A document in pieces, each as if the text between it and the one before had been left out.

    Positional skip-wise training (Zhu et al. 2023, arXiv:2309.10400), section 3.2: the pieces are
    cut at random; the first begins at 0, and each later one skips a random number of positions, of
    those that are left. So a model is fine-tuned for texts of `longest` tokens on short ones.
    """

    longest: int
    pieces: int = 2

    def __post_init__(self):
        _check(self)
        if self.pieces < 2:
            raise ValueError(f"PoSE: pieces must be at least 2, not {self.pieces}")

    def draw(self, rng: np.random.Generator, length: int) -> Int[np.ndarray, " T"]:
        pieces = min(self.pieces, length)
        cuts = 1 + np.sort(rng.choice(length - 1, pieces - 1, replace=False)) if pieces > 1 else []
        skipped, positions = 0, np.arange(length)
        for cut in cuts:
            more = int(rng.integers(skipped, self.longest - length, endpoint=True)) - skipped
            positions[cut:] += more
            skipped += more
        return positions


@dataclass(frozen=True)
class FromZero:
    """Every document's piece in a row from 0, where the pieces of a long one count on."""

    longest: int

    def draw(self, rng: np.random.Generator, length: int) -> Int[np.ndarray, " T"]:
        """0, 1, 2, ..."""
        return np.arange(length)


def redraw(
    scheme: TrainingPositions,
    rng: np.random.Generator,
    positions: Int[np.ndarray, "B T"],
    segments: Int[np.ndarray, "B T"],
) -> Int[np.ndarray, "B T"]:
    """The positions of a batch, drawn anew for each document of each row; padding keeps its own."""
    new = np.array(positions)
    for row, documents in zip(new, segments, strict=True):
        for document in np.unique(documents[documents > 0]):
            (where,) = np.nonzero(documents == document)
            row[where] = scheme.draw(rng, len(where))
    return new


def _check(scheme: TrainingPositions) -> None:
    if not 1 <= scheme.longest < 2**31:
        name = type(scheme).__name__
        raise ValueError(f"{name}: longest must be at least 1 and below 2^31, not {scheme.longest}")


TRAINING_POSITIONS: dict[str, type] = {c.__name__: c for c in (Randomised, PoSE)}
