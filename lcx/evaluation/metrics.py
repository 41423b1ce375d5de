"""What evaluations say: measures of documents' scores, and how sure we are of them.

Everything starts from sums over one document's target tokens: the negative log-likelihood in
nats, say, the number of tokens, the number of bytes of text they stand for. Documents, not tokens,
are the unit of chance: tokens of one text rise and fall together. Where a variant was trained more
than once, its runs are drawn by chance as well (`lcx.evaluation.intervals`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from lcx import spec
from lcx.cost import Cost
from lcx.evaluation.intervals import Estimate, Scores, Weights, difference, mean
from lcx.protocols import EvaluationProtocol
from lcx.protocols.measures import Measure
from lcx.wording import or_nan

NOTHING: Mapping[str, float] = {}

DocumentScore = dict[str, Any]
"""What one run of a variant made of the target tokens of one document.

    name     of the document
    spans    places of the document that the target tokens were taken from
    tokens   how many target tokens
    bytes    bytes of text that they stand for, whatever the tokenizer

and sums over the target tokens, in float64, of what the protocol's measures average: `nll`, in
nats, and `hits`, those that no other token was likelier than, unless it has its own.

Of a protocol that has text written: tokens and bytes are what was written, spans the texts after
this prompt, `prompts` is 1, and what else is there are means over its texts.
"""

ContextScore = dict[str, Any]
"""One point of a curve: one run at one context length. Intervals are over its documents.

    context                 the context length
    reach                   the most tokens, BOS included, that any target was predicted from
    tokens                  target tokens
    documents               [DocumentScore]
    measure.key             of each measure its value,
    measure.interval        and its 95% interval: [low, high], NaN where none is known
"""

PooledScore = dict[str, Any]
"""One point of a variant, over all its runs. Intervals are over documents and runs together.

As a `ContextScore`, but documents are counted, and so are `spans` and `seeds`. Perplexity is the
exponential of the mean over runs of the mean nats a token.
"""


class About(TypedDict):
    """What a result says of its protocol, beside the protocol's settings."""

    measures: list[dict[str, Any]]
    """`Measure`s, encoded (`lcx.spec`); the report is about the first that fits."""
    unit: str
    """What context lengths count."""
    terms: dict[str, str | None]
    """What points and intervals are called; see `lcx.protocols.base.Terms`."""
    may_differ: list[str]
    """Fields of the protocol in which variants of one page may differ."""
    same_targets: bool
    """Whether the targets are the same at every context length."""
    words: str
    """What the protocol does, for the reader of the page."""


def about(protocol: EvaluationProtocol) -> About:
    """What a result says of this protocol."""
    return About(
        measures=[spec.encode(measure) for measure in protocol.measures],
        unit=protocol.unit,
        terms=protocol.terms._asdict(),
        may_differ=[*protocol.may_differ],
        same_targets=protocol.same_targets,
        words=protocol.words,
    )


class WrittenText(TypedDict):
    """What was written after the first prompt, for reading."""

    prompt: str
    author: str
    written: str


class Evaluated(NamedTuple):
    """What a protocol says of some parameters."""

    contexts: list[ContextScore]
    reference: list[ContextScore] | None = None
    """The same of what the documents' authors wrote, where a model writes."""
    shown: WrittenText | None = None


class Evaluation(TypedDict):
    """All that one evaluation of one run has to say; written as JSON (see `jsonable`)."""

    variant: str
    seed: int
    """Which of the variant's runs: 0, 1, ..."""
    weights: str
    """The fingerprint of its parameters."""
    changed: list[str]
    """What it was made of otherwise than was asked when it was evaluated, a line each."""
    protocol: dict[str, Any]
    about: About
    data: dict[str, Any]
    setup: dict[str, Any]
    """What the variant is, in words and numbers; see `lcx.variants.setup_of`."""
    cost: Cost
    published: str | None
    """The published model whose weights it comes from, if it does."""
    trainings: list[str]
    """The variants whose training, one after the other, made its weights: its own among them."""
    train_len: int | None
    """Tokens of the longest rows that any of these was trained on, or that the published model's
    config tells: beyond is extrapolation. None: nobody says."""
    train_tokens: int
    train_flops: float | None
    """Of all trainings together; None where a formula is missing, or weights are published."""
    train_seconds: float
    eval_seconds: float
    contexts: list[ContextScore]
    reference: list[ContextScore] | None
    """The same of what the documents' authors wrote, where a model writes."""
    shown: WrittenText | None
    environment: dict[str, Any]


class Comparison(TypedDict):
    """A measure of one score against that of another, over the same targets."""

    context: int
    value: float
    """The ratio of perplexities; of other measures the difference."""
    ci95: list[float]
    p_value: float
    """That both are equal."""


def context_score(
    context: int,
    documents: Sequence[DocumentScore],
    reach: int,
    measures: Sequence[Measure],
    of_all: Mapping[str, float] = NOTHING,
) -> ContextScore:
    """The curve's point at `context` tokens, over `documents`, each with the weight of its tokens,
    or of what the measure is per.

    of_all: what measures of all documents as one have found, by `Measure.sums`.

    Raises ValueError when there is nothing to score, or `context` is below 1.
    """
    if context < 1:
        raise ValueError(f"a context is at least one token, got {context}")
    if not documents:
        raise ValueError(f"no documents were scored at context {context}")
    return dict(
        context=context,
        reach=reach,
        tokens=sum(d["tokens"] for d in documents),
        documents=list(documents),
        **_levels([documents], measures, [of_all]),
    )


def pooled_score(runs: Sequence[ContextScore], measures: Sequence[Measure]) -> PooledScore:
    """One point of all runs of a variant. Raises ValueError unless they scored the same targets."""
    first, *others = runs
    for other in others:
        check_same_targets(first, other, "tokens")
    return dict(
        context=first["context"],
        reach=first["reach"],
        tokens=first["tokens"],
        documents=len(first["documents"]),
        spans=sum(d["spans"] for d in first["documents"]),
        seeds=len(runs),
        **_levels(
            [run["documents"] for run in runs],
            measures,
            [{m.sums: or_nan(run[m.key]) for m in measures if m.per == "all"} for run in runs],
        ),
    )


def compare(
    a: Sequence[ContextScore], b: Sequence[ContextScore], measure: Measure, paired_runs: bool
) -> Comparison:
    """`a` against `b`, each all the runs of one variant at one context length.

    What makes a document hard is hard for both and cancels, so this interval is often far narrower
    than a look at the two separate ones suggests. With a single run of each it is over documents
    alone: it says how these weights differ. paired_runs: see `lcx.evaluation.intervals.difference`.

    Raises ValueError unless all scored the same targets, document by document.
    """
    for other in (*a[1:], *b):
        check_same_targets(a[0], other, measure.per)
    of_a, of_b = (_scores([run["documents"] for run in runs], measure) for runs in (a, b))
    weights, of_the_other = (_weights(x[0]["documents"], measure) for x in (a, b))
    # tokens that cover the same span may stick out by other numbers of bytes: rates are compared.
    # The end of a turn alone has no bytes, whatever the tokenizer
    some = of_the_other > 0
    of_b = of_b * np.divide(weights, of_the_other, out=np.ones_like(weights), where=some)
    with np.errstate(invalid="ignore"):  # infinite in both: no number says how they differ
        estimate = difference(of_a, of_b, weights, paired_runs)
    low, high = estimate.interval()
    return Comparison(
        context=a[0]["context"],
        value=measure.value(estimate.value),
        ci95=[measure.value(low), measure.value(high)],
        p_value=estimate.p_value(),
    )


def check_same_targets(a: ContextScore, b: ContextScore, per: str) -> None:
    """Raise ValueError unless both scored the same documents, in order, and as much of each.

    Counted in tokens where these are what a measure is per; in spans where tokenizers may differ.
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


def _levels(
    runs: Sequence[Sequence[DocumentScore]],
    measures: Sequence[Measure],
    of_all: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for measure in measures:
        if measure.per == "all":
            found[measure.key] = float(np.mean([run[measure.sums] for run in of_all]))
            found[measure.interval] = [math.nan, math.nan]
            continue
        weights = _weights(runs[0], measure)
        if not weights.sum() > 0:
            raise ValueError(f"{measure.name} needs at least one of the targets' {measure.per}")
        estimate: Estimate = mean(_scores(runs, measure), weights)
        interval = [measure.value(x) for x in estimate.interval()]
        found[measure.key] = measure.value(estimate.value)
        found[measure.interval] = measure.within(interval)
    return found


def _scores(runs: Sequence[Sequence[DocumentScore]], measure: Measure) -> Scores:
    # None, from JSON, becomes NaN
    return np.array([[d[measure.sums] for d in run] for run in runs], dtype=np.float64)


def _weights(documents: Sequence[DocumentScore], measure: Measure) -> Weights:
    return np.array([d[measure.per] for d in documents], dtype=np.float64)
