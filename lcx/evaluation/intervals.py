"""How sure a mean is that was taken over runs and documents, both of them drawn by chance.

Every run (a seed of one variant) is measured on every document. A mean of such crossed scores has
two sources of error: which documents these happen to be, and which seeds. With three seeds, the
second is known from two deviations, and a bootstrap of them is far too narrow. So both variances
are estimated, and each counts with its own quantile of Student's t:

    half width^2 = t(runs - 1)^2 variance of runs + t(documents - 1)^2 variance of documents

(Banerjee 1960, Sankhya 22). Decision 13 has the coverage that was measured, beside bootstraps.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Scores = Float[np.ndarray, "seeds documents"]
"""A sum for each of S runs and N documents: nats, say, over the document's targets."""
Weights = Float[np.ndarray, " documents"]
"""What a document's sums are divided by: its tokens, or its bytes."""


class Part(NamedTuple):
    """One source's share in the variance of a mean, and how many deviations it is known from."""

    variance: float
    freedom: float


NO_PART = Part(0.0, 1.0)


class Estimate(NamedTuple):
    """A mean, or a difference of two, and what is known of its error."""

    value: float
    documents: Part
    runs: Part

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Low and high; both NaN where the error is not known."""
        half = self._half_width(1 - level)
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """Of the hypothesis that the true value is 0: two-sided; NaN where the error is not known.

        It is 1 - level of the interval that just reaches 0.
        """
        if not math.isfinite(self.value + self.documents.variance + self.runs.variance):
            return math.nan
        low, high = -300.0, 0.0  # of log p; below, squares of quantiles leave float64
        for _ in range(60):
            middle = (low + high) / 2
            if self._half_width(math.exp(middle)) < abs(self.value):
                high = middle  # 0 lies outside of the interval: p is smaller
            else:
                low = middle
        return math.exp(high)

    def _half_width(self, outside: float) -> float:
        from scipy.special import stdtrit

        parts = (self.documents, self.runs)
        return math.sqrt(
            sum(float(stdtrit(p.freedom, outside / 2)) ** 2 * p.variance for p in parts)
        )


def mean(scores: Scores, weights: Weights) -> Estimate:
    """The mean over runs of sum(scores) / sum(weights).

    A single run leaves the error of the documents alone; a single document leaves none known.
    """
    return _estimate(scores.mean(axis=0), weights, _of_runs(scores, weights))


def difference(
    a: Scores, b: Float[np.ndarray, "draws documents"], weights: Weights, paired_runs: bool
) -> Estimate:
    """`mean(a) - mean(b)` over the same documents, whose own difficulty cancels.

    paired_runs: run i of the one began where run i of the other did, or went on from it, and what
    they share cancels too; otherwise the runs of the two have nothing in common, and the degrees of
    freedom of their variances' sum are Welch's.
    """
    if paired_runs:
        return mean(a - b, weights)
    parts = [_of_runs(a, weights), _of_runs(b, weights)]
    variance = sum(part.variance for part in parts)
    runs = NO_PART
    if variance > 0:
        runs = Part(variance, variance**2 / sum(p.variance**2 / p.freedom for p in parts))
    return _estimate(a.mean(axis=0) - b.mean(axis=0), weights, runs)


def told_apart(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected, so that the chance of any mistake among them is `level`.

    Holm 1979, for any dependence between them. NaN is never rejected, and is no comparison.
    """
    rejected = [False] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    for rank, (p, i) in enumerate(order):
        if p > level / (len(order) - rank):
            break
        rejected[i] = True
    return rejected


def _of_runs(scores: Scores, weights: Weights) -> Part:
    if len(scores) < 2:
        return NO_PART
    with np.errstate(invalid="ignore"):  # of what diverged the variance is NaN
        means = scores.sum(axis=1) / weights.sum()
        return Part(float(means.var(ddof=1)) / len(means), len(means) - 1)


def _estimate(sums: Float[np.ndarray, " documents"], weights: Weights, runs: Part) -> Estimate:
    total, n = weights.sum(), len(weights)
    value = float(sums.sum() / total)
    if n < 2 or not np.isfinite(sums).all():
        return Estimate(value, Part(math.nan, 1.0), runs)
    # a ratio's error is that of the sums' deviations from what the weights alone would give
    deviations = sums - value * weights
    variance = n / (n - 1) * float((deviations**2).sum()) / float(total) ** 2
    return Estimate(value, Part(variance, n - 1), runs)
