"""How fast training went: of steps as they are logged, compilation left out."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

UNDISTURBED = 0.05
"""The share of steps that were faster than the best: a step whose work had begun while the one
before was still being written seems to take no time."""


class Speed(NamedTuple):
    """Tokens a second."""

    median: float
    """Of the median step: neither compilation nor a checkpoint moves it."""
    best: float
    """Of the steps that nothing disturbed: that which one in twenty is faster than."""


def speed_of(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Speed | None:
    """Of the steps of all runs, whose rows have "tokens" and "seconds" so far.

    None without a step after the first, which compiles.
    """
    steps = [
        (after["tokens"] - before["tokens"], after["seconds"] - before["seconds"])
        for rows in runs
        for before, after in pairwise(rows)
    ]
    if not steps:
        return None
    tokens, seconds = np.array(steps, dtype=float).T
    median, best = np.quantile(seconds, [0.5, UNDISTURBED])
    if best <= 0:
        return None
    usual = np.median(tokens)
    return Speed(float(usual / median), float(usual / best))
