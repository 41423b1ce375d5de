"""Perplexity, bits per byte and accuracy, and how sure we are of them.

Everything starts from sums over one document's target tokens: the negative log-likelihood in nats,
the number of tokens, the number of bytes of text they stand for. Documents, not tokens, are the
unit of chance: tokens of one text rise and fall together. Where a variant was trained more than
once, its runs are drawn by chance as well (`lcx.intervals`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from lcx.intervals import Estimate, Scores, Weights, difference, mean


class DocumentScore(TypedDict):
    """What one run of a variant made of the target tokens of one document."""

    name: str
    nll: float
    """Nats, summed over the target tokens in float64."""
    tokens: int
    bytes: int
    """Bytes of text that the target tokens stand for, whatever the tokenizer."""
    hits: int
    """Target tokens that no other token was likelier than."""
    spans: int
    """Places of the document that the target tokens were taken from."""


class Levels(TypedDict):
    """The measures of a point, each with its 95% interval: [low, high], NaN where none is known."""

    ppl: float
    ci95: list[float]
    bits_per_byte: float
    bits_ci95: list[float]
    accuracy: float
    """Share of the target tokens that no other token was likelier than."""
    accuracy_ci95: list[float]


class ContextScore(Levels):
    """One point of a curve: one run at one context length. Intervals are over its documents."""

    context: int
    reach: int
    """The most tokens, document mark included, that any target was predicted from."""
    tokens: int
    documents: list[DocumentScore]


class PooledScore(Levels):
    """One point of a variant, over all its runs. Intervals are over documents and runs together.

    Perplexity is the exponential of the mean over runs of the mean nats a token.
    """

    context: int
    reach: int
    tokens: int
    documents: int
    spans: int
    seeds: int


class Cost(TypedDict):
    """What a variant takes, as far as its specification tells; see `lcx.cost`."""

    parameters: int
    training_flops: float | None
    """Per token of training, forward and backward; a multiply-add counts as two. None: unknown."""
    state_bytes: dict[str, int]
    """What decoding one text keeps, by its length in tokens (as JSON has it: a string)."""


class Measure(NamedTuple):
    """Which number of a score a report is about."""

    name: str
    key: Literal["ppl", "bits_per_byte", "accuracy"]
    interval: Literal["ci95", "bits_ci95", "accuracy_ci95"]
    best: Callable[[Iterable[float]], float]
    sums: Literal["nll", "hits"]
    per: Literal["tokens", "bytes"]
    compared: Literal["ratio", "difference"]
    """How two values are compared: perplexities are divided, the others subtracted."""

    @property
    def neutral(self) -> int:
        """What the comparison of two equal values gives."""
        return 1 if self.compared == "ratio" else 0

    def value(self, x: float) -> float:
        """The measure (or its comparison) from a mean (or a difference of means) of `sums`."""
        if self.key == "ppl":
            return _exp(x)
        return x / math.log(2) if self.key == "bits_per_byte" else x


PERPLEXITY = Measure("perplexity", "ppl", "ci95", min, "nll", "tokens", "ratio")
BITS = Measure("bits per byte", "bits_per_byte", "bits_ci95", min, "nll", "bytes", "difference")
ACCURACY = Measure("accuracy", "accuracy", "accuracy_ci95", max, "hits", "tokens", "difference")
MEASURES = {measure.name: measure for measure in (PERPLEXITY, BITS, ACCURACY)}


class Evaluation(TypedDict):
    """All that one evaluation of one run has to say; written as JSON (see `jsonable`)."""

    variant: str
    seed: int
    """Which of the variant's runs: 0, 1, ..."""
    protocol: dict[str, Any]
    data: dict[str, Any]
    setup: dict[str, Any]
    """What the variant is, in words and numbers; see `lcx.variants.setup_of`."""
    cost: Cost
    published: str | None
    """The published model whose weights it comes from, if it does."""
    trainings: list[str]
    """The variants whose training, one after the other, made its weights: its own among them."""
    train_len: int
    """Tokens of the longest rows that any of these was trained on: beyond is extrapolation."""
    train_tokens: int
    train_flops: float | None
    """Of all trainings together; None where a formula is missing, or weights are published."""
    train_seconds: float
    eval_seconds: float
    contexts: list[ContextScore]
    environment: dict[str, Any]


class Comparison(TypedDict):
    """A measure of one score against that of another, over the same targets."""

    context: int
    value: float
    """The ratio of perplexities; of other measures the difference."""
    ci95: list[float]
    p_value: float
    """That both are equal."""


def context_score(context: int, documents: Sequence[DocumentScore], reach: int) -> ContextScore:
    """The curve's point at `context` tokens, token-weighted over `documents`.

    Raises ValueError when there is nothing to score, or `context` is below 1.
    """
    if context < 1:
        raise ValueError(f"a context is at least one token, got {context}")
    if not documents:
        raise ValueError(f"no documents were scored at context {context}")
    return ContextScore(
        context=context,
        reach=reach,
        tokens=sum(d["tokens"] for d in documents),
        documents=list(documents),
        **_levels([documents]),
    )


def pooled_score(runs: Sequence[ContextScore]) -> PooledScore:
    """One point of all runs of a variant. Raises ValueError unless they scored the same targets."""
    first, *others = runs
    for other in others:
        check_same_targets(first, other, "tokens")
    return PooledScore(
        context=first["context"],
        reach=first["reach"],
        tokens=first["tokens"],
        documents=len(first["documents"]),
        spans=sum(d["spans"] for d in first["documents"]),
        seeds=len(runs),
        **_levels([run["documents"] for run in runs]),
    )


def compare(
    a: Sequence[ContextScore], b: Sequence[ContextScore], measure: Measure, paired_runs: bool
) -> Comparison:
    """`a` against `b`, each all the runs of one variant at one context length.

    What makes a document hard is hard for both and cancels, so this interval is often far narrower
    than a look at the two separate ones suggests. With a single run of each it is over documents
    alone: it says how these weights differ. paired_runs: see `lcx.intervals.difference`.

    Raises ValueError unless all scored the same targets, document by document.
    """
    for other in (*a[1:], *b):
        check_same_targets(a[0], other, measure.per)
    of_a, of_b = (_scores([run["documents"] for run in runs], measure) for runs in (a, b))
    weights = _weights(a[0]["documents"], measure)
    # tokens that cover the same span may stick out by other numbers of bytes: rates are compared
    of_b = of_b * (weights / _weights(b[0]["documents"], measure))
    with np.errstate(invalid="ignore"):  # infinite in both: no number says how they differ
        estimate = difference(of_a, of_b, weights, paired_runs)
    low, high = estimate.interval()
    return Comparison(
        context=a[0]["context"],
        value=measure.value(estimate.value),
        ci95=[measure.value(low), measure.value(high)],
        p_value=estimate.p_value(),
    )


def check_same_targets(a: ContextScore, b: ContextScore, per: Literal["tokens", "bytes"]) -> None:
    """Raise ValueError unless both scored the same documents, in order, and as much of each.

    Counted in tokens, or in spans where tokenizers may differ.
    """
    at = " and ".join(dict.fromkeys(str(score["context"]) for score in (a, b)))
    counted = "tokens" if per == "tokens" else "spans"
    pairs = [[(d["name"], d[counted]) for d in score["documents"]] for score in (a, b)]
    if len(pairs[0]) != len(pairs[1]):
        raise ValueError(
            f"cannot pair {len(pairs[0])} documents with {len(pairs[1])} "
            f"at context {at}: both must score the same ones"
        )
    for i, ((name_a, n_a), (name_b, n_b)) in enumerate(zip(*pairs, strict=True)):
        if (name_a, n_a) != (name_b, n_b):
            raise ValueError(
                f"cannot pair document {i} at context {at}: "
                f"{name_a!r} with {n_a} scored {counted} against {name_b!r} with {n_b}"
            )


def jsonable(tree: Any) -> Any:
    """The same tree with None for every float that strict JSON cannot say (NaN and infinities)."""
    if isinstance(tree, dict):
        return {key: jsonable(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [jsonable(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def _levels(runs: Sequence[Sequence[DocumentScore]]) -> Levels:
    found: dict[str, Any] = {}
    for measure in MEASURES.values():
        weights = _weights(runs[0], measure)
        if not weights.sum() > 0:
            raise ValueError(f"{measure.name} needs at least one of the targets' {measure.per}")
        estimate: Estimate = mean(_scores(runs, measure), weights)
        interval = [measure.value(x) for x in estimate.interval()]
        if measure is ACCURACY:  # a share, whatever the interval's formula thinks
            interval = [min(1.0, max(0.0, x)) if x == x else x for x in interval]
        found |= {measure.key: measure.value(estimate.value), measure.interval: interval}
    return Levels(**found)


def _scores(runs: Sequence[Sequence[DocumentScore]], measure: Measure) -> Scores:
    # None, from JSON, becomes NaN
    return np.array([[d[measure.sums] for d in run] for run in runs], dtype=np.float64)


def _weights(documents: Sequence[DocumentScore], measure: Measure) -> Weights:
    return np.array([d[measure.per] for d in documents], dtype=np.float64)


def _exp(nats: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nats)))
