"""Repetition taken out of finished texts, with what was measured before and after."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from lcx.repetition.measures import (
    distinct_of_all,
    entropy,
    repeated,
    seq_rep,
    text_diversity,
)
from lcx.repetition.ngrams import words
from lcx.repetition.ratios import ratios
from lcx.repetition.sentences import lines, plain, sentences, spans


class Summary(NamedTuple):
    """Of some texts, over words; NaN where there is nothing to count."""

    texts: int
    words: int
    seq_rep_4: float
    """Macro."""
    diversity: float
    """Macro."""
    distinct_4: float
    """Of all texts as one: near copies lower it."""
    entropy: float
    """Of words, in bits, macro."""
    repeated_sentences: float
    """Pooled: of all sentences, those that equal an earlier one of the same text."""
    repeated_lines: float
    """Pooled, likewise; blank lines are none."""


def summary(texts: Sequence[str]) -> Summary:
    """What filters report before and after. A filter shortens texts: look at `words`, too."""
    cut = [words(text) for text in texts]
    return Summary(
        texts=len(texts),
        words=sum(map(len, cut)),
        seq_rep_4=float(ratios(partial(seq_rep, n=4), cut).mean("macro")),
        diversity=float(ratios(text_diversity, cut).mean("macro")),
        distinct_4=distinct_of_all(cut, 4),
        entropy=float(ratios(entropy, cut).mean("macro")),
        repeated_sentences=float(
            ratios(repeated, [sentences(text) for text in texts]).mean("pooled")
        ),
        repeated_lines=float(ratios(repeated, [lines(text) for text in texts]).mean("pooled")),
    )


class Filtered(NamedTuple):
    """What a filter left."""

    texts: list[str]
    before: Summary
    after: Summary


def without_repeated_sentences(texts: Sequence[str], shortest: int = 12) -> Filtered:
    """Each text without the sentences that equal an earlier one of it.

    Those of under `shortest` characters stay: "Yes." may come again.
    """
    return _filtered(texts, [_unrepeated_sentences(text, shortest) for text in texts])


def without_repeated_lines(texts: Sequence[str], shortest: int = 12) -> Filtered:
    """Each text without the lines that equal an earlier one of it.

    With a line go the blank ones after it; no others: they are no duplicates. Lines of under
    `shortest` characters stay.
    """
    return _filtered(texts, [_unrepeated_lines(text, shortest) for text in texts])


def without_near_copies(texts: Sequence[str], threshold: float = 0.8, shingle: int = 5) -> Filtered:
    """The texts, without those that are nearly copies of an earlier one that stayed.

    Two are where the Jaccard similarity of their sets of `shingle` words in a row is at least the
    threshold (Broder 1997). These sets are compared as they are, not by MinHash: texts that a
    model has written are few beside a corpus, and too short for a sample of their shingles.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: above 0 and at most 1, not {threshold}")
    if shingle < 1:
        raise ValueError(f"shingle: at least 1 word, not {shingle}")
    kept: list[str] = []
    sizes: list[int] = []
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for text in texts:
        cut = words(text.casefold())
        # a shorter text is one shingle
        own = {tuple(cut[i : i + shingle]) for i in range(max(len(cut) - shingle, 0) + 1)}
        shared = Counter(number for each in own for number in holders.get(each, ()))
        if any(n >= threshold * (len(own) + sizes[i] - n) for i, n in shared.items()):
            continue
        for each in own:
            holders[each].append(len(kept))
        kept.append(text)
        sizes.append(len(own))
    return _filtered(texts, kept)


def _filtered(texts: Sequence[str], left: list[str]) -> Filtered:
    return Filtered(left, summary(texts), summary(left))


def _unrepeated_sentences(text: str, shortest: int) -> str:
    seen: set[str] = set()
    left: list[str] = []
    gap, end = "", 0
    for found in spans(text):
        # where a sentence is gone, the wider gap stays: a paragraph's end is not lost with it
        gap = max(gap, text[end : found.start()], key=lambda g: (g.count("\n"), len(g)))
        end = found.end()
        if _again(found.group(), seen, shortest):
            continue
        left += [gap, found.group()]
        gap = ""
    return "".join([*left, text[end:]])


def _unrepeated_lines(text: str, shortest: int) -> str:
    seen: set[str] = set()
    left: list[str] = []
    gone = False
    for line in text.splitlines(keepends=True):
        if line.strip():
            gone = _again(line, seen, shortest)
        if not gone:
            left.append(line)
    return "".join(left)


def _again(text: str, seen: set[str], shortest: int) -> bool:
    key = plain(text)
    known = key in seen
    seen.add(key)
    return known and len(key) >= shortest
