"""What papers measure of repetition within a text, and of the words of all texts together.

Functions of one text give a `Ratio`, for `ratios` and `by_length`; those of many texts say so.
"""

import math
from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool

from lcx.repetition.ngrams import Tokens, ngrams, words
from lcx.repetition.ratios import Convention, Ratio, ratios

DIVERSITY = (2, 3, 4)
"""The n that diversity is a product over."""


# ------------------------------------------------------------------------------ within a text


def repeated(items: Sequence[Hashable]) -> Ratio:
    """How many equal an earlier one, of all: sentences, lines, whole texts."""
    return Ratio(len(items) - len(set(items)), len(items))


def seq_rep(text: Tokens, n: int = 4) -> Ratio:
    """seq-rep-n = 1 - unique n-grams / n-grams (Welleck et al. 2019, arXiv:1908.04319).

    Published over model tokens of continuations of one length, averaged as "macro". The official
    code cuts a continuation at the first token with id 1, as padding; nothing is cut here.
    """
    (found,) = ngrams([text], n)
    return Ratio(len(found) - len(np.unique(found)), len(found))


def distinct(text: Tokens, n: int = 2) -> Ratio:
    """distinct-n: different n-grams over tokens, not over n-grams (Li et al. 2016, 1510.03055)."""
    (found,) = ngrams([text], n)
    return Ratio(len(np.unique(found)), len(text))


def text_diversity(text: Tokens) -> Ratio:
    """prod_{n = 2..4} (1 - seq-rep-n) of one text, over 1: either convention is "macro".

    Nothing to count in a text of under 4 tokens.
    """
    reps = [seq_rep(text, n) for n in DIVERSITY]
    if not all(rep.whole for rep in reps):
        return Ratio(0, 0)
    return Ratio(math.prod(1 - rep.part / rep.whole for rep in reps), 1)


def entropy(text: Tokens, n: int = 1) -> Ratio:
    """Bits per n-gram: -sum p log2 p over the n-grams of the text itself (Shannon 1948).

    Of frequencies as they were counted, which is below the source's by about (different n-grams
    - 1) / (2 ln 2 n-grams) bits: compare texts of one length.
    """
    (found,) = ngrams([text], n)
    if not len(found):
        return Ratio(0, 0)
    counts = np.unique(found, return_counts=True)[1]
    return Ratio(float((counts * np.log2(len(found) / counts)).sum()), len(found))


def same_as_before(text: Tokens) -> Ratio:
    """Tokens that equal the one before them, of all that have one before."""
    (found,) = ngrams([text], 1)
    return Ratio(int((found[1:] == found[:-1]).sum()), max(len(found) - 1, 0))


def longest_run(text: Tokens) -> Ratio:
    """The length of the longest run of one token (`part`), over that of the text."""
    (found,) = ngrams([text], 1)
    ends = np.flatnonzero(np.append(found[1:] != found[:-1], True)) if len(found) else found
    return Ratio(int(np.diff(ends, prepend=-1).max(initial=0)), len(found))


# ------------------------------------------------------------------------------ predictions


def rep(predictions: Tokens, targets: Tokens, last: int) -> Ratio:
    """rep/l: likeliest tokens that are among the l = `last` tokens of the text before them.

    predictions[t] is what the model thinks likeliest in the place of targets[t], after what an
    author wrote there, not after its own words (Welleck et al. 2019). `rep(targets, targets,
    last)` is the author's own, without which the number says little: print both. What was read
    before targets[0] is not looked at, as in the official code. Pooled over texts in the paper.
    """
    again = among_the_last(predictions, targets, last)
    return Ratio(int(again.sum()), len(again))


def wrep(predictions: Tokens, targets: Tokens, last: int) -> Ratio:
    """wrep/l: the same, of predictions that are wrong, too (Welleck et al. 2019)."""
    again = among_the_last(predictions, targets, last)
    guess, true = ngrams([predictions, targets], 1)
    return Ratio(int((again & (guess != true)).sum()), len(again))


def among_the_last(predictions: Tokens, targets: Tokens, last: int) -> Bool[np.ndarray, "_"]:
    """Which predictions are among the `last` targets before their place; what `rep` counts."""
    if len(predictions) != len(targets):
        raise ValueError(
            f"one prediction for each target: {len(predictions)} predictions, "
            f"{len(targets)} targets"
        )
    if last < 1:
        raise ValueError(f"rep/l looks back by at least 1 token, not {last}")
    place: dict[int, int] = {}
    again = np.zeros(len(targets), bool)
    guess, true = (x.tolist() for x in ngrams([predictions, targets], 1))
    for t in range(len(true)):
        again[t] = guess[t] in place and t - place[guess[t]] <= last
        place[true[t]] = t
    return again


# ------------------------------------------------------------------------------ of many texts


def uniq(texts: Sequence[Tokens]) -> int:
    """How many different tokens there are in all texts together (Welleck et al. 2019).

    Of predictions after an author's words it is the paper's uniq, of continuations uniq-seq. It
    grows with the tokens that are looked at: compare equal numbers of equally long texts.
    """
    return len(set().union(*(found.tolist() for found in ngrams(texts, 1))))


def distinct_of_all(texts: Sequence[Tokens], n: int = 2) -> float:
    """distinct-n of all texts as one (Li et al. 2016): an n-gram counts once, whoever wrote it.

    Below the pooled mean of `distinct`, where texts share n-grams. NaN without tokens.
    """
    found = ngrams(texts, n)
    tokens = sum(len(text) for text in texts)
    return len(set().union(*(x.tolist() for x in found))) / tokens if tokens else math.nan


def diversity(texts: Sequence[Tokens], convention: Convention) -> float:
    """The mean of the texts' products ("macro"), or the product of pooled rates ("pooled").

    The latter is as Su et al. 2022 (SimCTG, arXiv:2202.06417) define it. It is no mean over
    texts, and has no interval here; the former has, by `ratios(text_diversity, texts)`.
    """
    if convention == "macro":
        return float(ratios(text_diversity, texts).mean("macro"))
    reps = [ratios(partial(seq_rep, n=n), texts).mean("pooled") for n in DIVERSITY]
    return math.prod(1 - float(rep) for rep in reps)


def simctg(texts: Sequence[str]) -> dict[str, float]:
    """rep-2, rep-3, rep-4 in per cent and diversity, to hold against published tables.

    What SimCTG's script (`simctg/evaluation.py`) computes, and those who took it over: pooled, over
    words, without each text's last n-gram, which its loop does not reach; that is, of texts without
    their last word. It rounds rates to 0.01 per cent, also before it multiplies them, as here.
    """
    cut = [words(text)[:-1] for text in texts]
    rates = {
        f"rep-{n}": round(100 * float(ratios(partial(seq_rep, n=n), cut).mean("pooled")), 2)
        for n in DIVERSITY
    }
    return {**rates, "diversity": math.prod(1 - rate / 100 for rate in rates.values())}
