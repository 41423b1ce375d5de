"""The numbers of each picture, as rows: what is drawn, and what its CSV file holds."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lcx.protocols.measures import Measure
from lcx.report.summary import Curves, Report, context_lengths, measure_in
from lcx.wording import or_nan

Row = dict[str, Any]
"""Of a curve: variant, context, value, low, high (of the 95% interval), tokens, documents, spans,
seeds, trained; of a comparison also what it is against. NaN where a number is not known."""
Points = dict[str, list[Row]]
"""Rows by variant."""


def levels(report: Report, measure: Measure) -> Points:
    """The curves of a measure."""
    return {
        name: [_row(name, p, p[measure.key], p[measure.interval]) for p in variant["contexts"]]
        for name, variant in report["variants"].items()
    }


def reference(report: Report, measure: Measure) -> Points:
    """The curve that the variants' are held against, by its name, if there is one."""
    if report["reference"] is None:
        return {}
    name, points = report["reference"]["name"], report["reference"]["contexts"]
    rows = [_row(name, p, p[measure.key], p[measure.interval]) for p in points]
    return {name: rows}


def gains(report: Report) -> Points:
    """Each variant's longer contexts against its shortest, which is the curve's first point."""
    neutral, found = measure_in(report).neutral, {}
    for name, variant in report["variants"].items():
        if variant["gains"]:
            shortest, *longer = variant["contexts"]
            start = _row(name, shortest, neutral, [neutral, neutral])
            pairs = zip(longer, variant["gains"], strict=True)
            rows = [start, *(_row(name, p, gain["value"], gain["ci95"]) for p, gain in pairs)]
            found[name] = [{**row, "against": shortest["context"]} for row in rows]
    return found


def differences(report: Report) -> Points:
    """Each later variant against the first."""
    against, found = report["differences"]["against"], {}
    for name, compared in report["differences"]["variants"].items():
        points = {p["context"]: p for p in report["variants"][name]["contexts"]}
        rows = [_row(name, points[x["context"]], x["value"], x["ci95"]) for x in compared]
        found[name] = [{**row, "against": against} for row in rows]
    return found


def quality(report: Report) -> list[Row]:
    """What each variant's training and decoding take, and how good it is for that."""
    measure, longest, rows = measure_in(report), context_lengths(report)[-1], []
    for name, v in report["variants"].items():
        values = {p["context"]: or_nan(p[measure.key]) for p in v["contexts"]}
        finite = {c: x for c, x in values.items() if math.isfinite(x)}
        if not best_is_chosen(report):
            finite = {c: x for c, x in finite.items() if c == longest}
        best = measure.best(finite.values()) if finite else math.nan
        rows.append(
            {
                "variant": name,
                "training_flops": or_nan(v["train_flops"]),
                "tokens_per_second": or_nan(v["tokens_per_second"]),
                "best_tokens_per_second": or_nan(v["best_tokens_per_second"]),
                "best": best,
                "best_context": next((c for c, x in finite.items() if x == best), None),
                "longest": longest,
                "state_bytes": or_nan(v["cost"]["state_bytes"].get(str(longest))),
                "at_longest": values.get(longest, math.nan),
                "seeds": v["seeds"],
            }
        )
    return rows


def best_is_chosen(report: Report) -> bool:
    """Whether a variant's best point says something: not where each point has its own targets."""
    return report["about"]["same_targets"]


def states(report: Report) -> list[Row]:
    """What decoding keeps, by variant and length."""
    return [
        {"variant": name, "length": int(length), "state_bytes": n}
        for name, v in report["variants"].items()
        for length, n in v["cost"]["state_bytes"].items()
    ]


def training(report: Report, curves: Curves) -> list[Row]:
    """Every step of every run."""
    kept = ("step", "tokens", "seconds", "loss", "validation_loss")
    return [
        {"variant": name, "seed": seed} | {key: row.get(key) for key in kept}
        for name in report["variants"]
        for seed, rows in enumerate(curves.get(name, []))
        for row in rows
    ]


def loss_unit(report: Report) -> str:
    """What the losses of the variants count."""
    setups = [variant["setup"] for variant in report["variants"].values()]
    units = {setup["loss_unit"] for setup in setups if setup["steps"] > 0}
    return units.pop() if len(units) == 1 else "in each variant's own unit"


def flat(points: Points) -> list[Row]:
    """The rows of all variants, one after the other."""
    return [row for rows in points.values() for row in rows]


def as_csv(rows: Sequence[Row]) -> bytes:
    """A table with a line of names; empty cells for what is not known."""
    if not rows:
        return b""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_known(rows))
    return text.getvalue().encode()


def _row(name: str, point: dict[str, Any], value: float, ci95: Iterable[float]) -> Row:
    low, high = map(or_nan, ci95)
    counts = ("tokens", "documents", "spans", "seeds", "trained")
    return {
        "variant": name,
        "context": point["context"],
        "value": or_nan(value),
        "low": low,
        "high": high,
        **{key: point[key] for key in counts},
    }


def _known(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        yield {k: None if isinstance(x, float) and math.isnan(x) else x for k, x in row.items()}
