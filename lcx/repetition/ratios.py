"""Numbers by text, how they are averaged, and how they grow with the length of the texts.

Two conventions are in use, and give different numbers for the same texts:

    macro     each text has its ratio, and the mean is over texts: Welleck et al. 2019
    pooled    what is counted is summed over texts, and divided once: Su et al. 2022 (SimCTG)

They agree where the divisors are equal, as of n-grams in texts of one length.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from lcx.repetition.ngrams import Tokens

Convention = Literal["macro", "pooled"]
Text = TypeVar("Text")


class Ratio(NamedTuple):
    """What is counted in one text, over what it is counted of."""

    part: float
    whole: float
    """0 where there is nothing to count: a text shorter than n has no n-grams."""


class Ratios(NamedTuple):
    """The ratios of N texts, or of N texts cut at each of L lengths."""

    part: Float[np.ndarray, "*lengths texts"]
    whole: Float[np.ndarray, "*lengths texts"]

    def scores(
        self, convention: Convention
    ) -> tuple[Float[np.ndarray, "*lengths texts"], Float[np.ndarray, "*lengths texts"]]:
        """Sums and weights, whose quotient is the mean: what `lcx.evaluation.intervals` takes.

        Of the texts at length i: `intervals.mean(sums[i][None], weights[i])`. A text that has
        nothing to count has weight 0 in either convention.
        """
        if convention == "pooled":
            return self.part, self.whole
        some = self.whole > 0
        values = np.divide(self.part, self.whole, out=np.zeros_like(self.part), where=some)
        return values, some.astype(float)

    def mean(self, convention: Convention) -> Float[np.ndarray, "*lengths"]:
        """Over the texts; NaN where none has anything to count."""
        sums, weights = (x.sum(axis=-1) for x in self.scores(convention))
        return np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)


def ratios(measure: Callable[[Text], Ratio], texts: Iterable[Text]) -> Ratios:
    """The measure of each text."""
    found = np.array([measure(text) for text in texts], float).reshape(-1, 2)
    return Ratios(found[:, 0], found[:, 1])


def by_length(
    measure: Callable[[Tokens], Ratio], texts: Sequence[Tokens], lengths: Sequence[int]
) -> Ratios:
    """[L N]: the measure of each text cut to each number of tokens.

    A text that ended before is measured as it stands, as one that was asked for so many tokens at
    most; let only texts in that are long enough, where that is not what is meant. What an author
    wrote, to stand beside it, has to be cut as the model's texts were: every measure here changes
    with the length. What was written between two lengths is the difference of their `part` over
    that of their `whole`, where the measure is a sum over places, as `seq_rep` is.

    A measure of characters, such as `sentences`, decodes what it is given:
    `by_length(lambda ids: repeated(sentences(decode(ids))), ...)`.
    """
    if not len(lengths) or min(lengths) < 1:
        raise ValueError(f"lengths: some numbers of tokens, each at least 1, not {tuple(lengths)}")
    rows = [ratios(measure, [text[:length] for text in texts]) for length in lengths]
    return Ratios(np.stack([r.part for r in rows]), np.stack([r.whole for r in rows]))
