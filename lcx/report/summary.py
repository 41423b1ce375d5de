"""From evaluations to what a report says: pooled over runs, compared, told apart or not.

Everything here is numbers and plain values; report.json is what `summarise` gives.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from lcx.evaluation.intervals import told_apart
from lcx.evaluation.metrics import Evaluation, compare, jsonable, pooled_score
from lcx.protocols import Terms
from lcx.protocols.measures import Measure
from lcx.report.comparable import (
    Variant,
    check_comparable,
    decoded_measures,
    fitting_measures,
    grouped,
    measures_of,
)
from lcx.training.speed import speed_of

Report = dict[str, Any]
Curves = dict[str, list[list[dict[str, Any]]]]
"""Rows of training metrics ("step", "tokens", "seconds", "loss"), by variant, by run."""

NONE: Mapping[str, str] = {}

LEVEL = 0.05
"""The chance, held by the method, that any mark of a page is wrong."""


def summarise(
    results: Sequence[Evaluation], curves: Curves, failures: Mapping[str, str] = NONE
) -> Report:
    """What report.json says, before infinities are written as null.

    The first variant is the one that the others are compared against. failures: runs that could not
    be trained or evaluated, with the reason. Raises ValueError when the
    results cannot be compared: other protocols, other data, other target documents, or a run that
    is there twice.
    """
    variants = grouped(results)
    check_comparable(variants)
    measure, *further = fitting_measures(variants)
    pairs = [
        _compared(later, earlier, c, measure)
        for earlier, later in combinations(variants, 2)
        for c in earlier.contexts
        if c in later.contexts
    ]
    gains = {v.name: _gains(v, measure) for v in variants}
    family = [pair for pair in pairs if pair["training_chance"]]
    family += [gain for points in gains.values() for gain in points]
    p_values = [x["p_value"] for x in family]
    for x, sure in zip(family, told_apart(p_values, LEVEL), strict=True):
        x["marked"] = sure
    first, *others = variants
    contexts = sorted({c for v in variants for c in v.contexts})
    by_name = {v.name: _of_variant(v, curves.get(v.name, []), gains[v.name]) for v in variants}
    return {
        "protocol": _shared({v.name: v.results[0]["protocol"] for v in variants}),
        "data": _shared({v.name: v.results[0]["data"] for v in variants}),
        "about": first.results[0]["about"],
        "measure": measure.name,
        "further": [other.name for other in further],
        "reference": _reference(variants),
        "stands_for": {
            key: jsonable(first.results[0][key]) for key in ("variant", "protocol", "data", "about")
        },
        "variants": by_name,
        "failures": dict(failures),
        "differences": {
            "against": first.name,
            "variants": {
                v.name: [p for p in pairs if (p["variant"], p["against"]) == (v.name, first.name)]
                for v in others
            },
        },
        "document_weights": _document_weights(variants, measure),
        "best": [_best(c, by_name, measure, pairs) for c in contexts],
        "family": {
            "method": "Holm",
            "level": LEVEL,
            "comparisons": sum(not math.isnan(p) for p in p_values),
        },
        "environment": _shared({v.name: v.results[0]["environment"] for v in variants}),
    }


def measure_in(report: Report) -> Measure:
    """What the report is about."""
    return next(m for m in measures_in(report) if m.name == report["measure"])


def measures_in(report: Report) -> list[Measure]:
    """All that its protocol measures."""
    return decoded_measures(report["about"])


def further_measures(report: Report) -> list[Measure]:
    """The others that its variants can be compared by."""
    return [m for m in measures_in(report) if m.name in report["further"]]


def terms_in(report: Report) -> Terms:
    """What its points are called."""
    return Terms(**report["about"]["terms"])


def context_unit(report: Report) -> str:
    """What its points' lengths count: tokens or bytes."""
    return report["about"]["unit"]


def context_lengths(report: Report) -> list[int]:
    """Every context length, or what else points stand at, of some variant, ascending."""
    return [at["context"] for at in report["best"]]


def bold_variants(report: Report) -> dict[int, list[str]]:
    """At each context the variants that are not told apart from the best, where others are."""
    return {at["context"]: at["bold"] for at in report["best"]}


# What is compared with what


def _compared(a: Variant, b: Variant, context: int, measure: Measure) -> dict[str, Any]:
    """`a` against `b` at one context, not marked yet."""
    return {
        "variant": a.name,
        "against": b.name,
        **compare(a.at(context), b.at(context), measure, a.paired_with(b)),
        "training_chance": a.training_chance_known(b),
        "marked": False,
    }


def _gains(variant: Variant, measure: Measure) -> list[dict[str, Any]]:
    """Each longer context against the shortest: nothing where their targets are not the same."""
    if not variant.results[0]["about"]["same_targets"]:
        return []
    shortest, *longer = variant.contexts
    return [
        {
            "against": shortest,
            **compare(variant.at(c), variant.at(shortest), measure, paired_runs=True),
            "marked": False,
        }
        for c in longer
    ]


def _best(
    context: int, by_name: dict[str, Any], measure: Measure, pairs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Which variant has the best value, and whom it is told apart from.

    finite: the variants that have a value. known: whether the best was compared with all of them
    with another training in mind. tied: those it is not told apart from, itself among them. bold:
    the same, where others are told apart and that is known.
    """
    values = {
        name: point[measure.key]
        for name, variant in by_name.items()
        for point in variant["contexts"]
        if point["context"] == context and math.isfinite(point[measure.key])
    }
    found: dict[str, Any] = {
        "context": context,
        "best": None,
        "finite": list(values),
        "known": False,
        "tied": [],
        "bold": [],
    }
    if not values:
        return found
    best = measure.best(values.values())
    name = next(n for n, x in values.items() if x == best)
    rivals = {
        ({p["variant"], p["against"]} - {name}).pop(): p
        for p in pairs
        if p["context"] == context and name in (p["variant"], p["against"])
    }
    tied = [n for n in values if n == name or not rivals[n]["marked"]]
    known = all(rivals[n]["training_chance"] for n in values if n != name)
    bold = tied if known and len(tied) < len(values) else []
    return found | {"best": name, "known": known, "tied": tied, "bold": bold}


# What is said of one


def _reference(variants: Sequence[Variant]) -> dict[str, Any] | None:
    """What the variants are held against, if their protocol has such: its name and its points."""
    first = variants[0].results[0]
    points, name = first["reference"], first["about"]["terms"]["reference"]
    if points is None:
        return None
    if name in {v.name for v in variants}:
        name = f"{name} (of the author)"
    measures = measures_of(variants)
    return {
        "name": name,
        "contexts": [{**pooled_score([p], measures), "trained": True} for p in points],
    }


def _of_variant(
    variant: Variant, curves: Sequence[Sequence[dict[str, Any]]], gains: list[dict[str, Any]]
) -> dict[str, Any]:
    results, first = variant.results, variant.results[0]
    kept = ("setup", "cost", "published", "trainings", "train_len", "train_flops")
    measured = ("train_tokens", "train_seconds", "eval_seconds")
    measures = measures_of([variant])
    levels = ("context", *(k for m in measures for k in (m.key, m.interval)))
    points = [pooled_score(variant.at(c), measures) for c in variant.contexts]
    speed = speed_of(curves)
    return {
        **{key: first[key] for key in kept},
        "seeds": len(results),
        "changed": sorted({line for r in results for line in r["changed"]}),
        **{key: float(np.mean([r[key] for r in results])) for key in measured},
        "tokens_per_second": speed and speed.median,
        "best_tokens_per_second": speed and speed.best,
        # where nobody says how long it was trained, nothing is marked as longer
        "contexts": [
            {**p, "trained": p["reach"] <= (first["train_len"] or p["reach"])} for p in points
        ],
        "gains": gains,
        "shown": first["shown"],
        "own": {key: first["protocol"][key] for key in first["about"]["may_differ"]},
        "runs": [
            {
                "seed": r["seed"],
                **{key: r[key] for key in measured},
                "contexts": [{key: p[key] for key in levels} for p in r["contexts"]],
            }
            for r in results
        ],
    }


def _document_weights(variants: Sequence[Variant], measure: Measure) -> list[int]:
    """The least and the most that a document weighs at any point."""
    weights = [
        document[measure.per]
        for variant in variants
        for point in variant.results[0]["contexts"]
        for document in point["documents"]
    ]
    return [min(weights), max(weights)]


def _shared(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One value where all variants agree; otherwise each variant's own, by name."""
    merged = {}
    for key in dict.fromkeys(key for one in values.values() for key in one):
        own = {name: one.get(key) for name, one in values.items()}
        distinct = {json.dumps(jsonable(v), sort_keys=True, default=str) for v in own.values()}
        merged[key] = next(iter(own.values())) if len(distinct) == 1 else own
    return merged
