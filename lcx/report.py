"""From evaluations to a report: report.json, pictures, report.html, a table in the terminal."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcx.figures import (
    LIGHT,
    Curves,
    Report,
    best_variants,
    context_lengths,
    draw_measure,
    draw_recall,
    draw_state,
    draw_training,
    measure_in,
    megaflops,
    render,
    short_bytes,
    short_length,
    short_number,
)
from lcx.metrics import ACCURACY, Cost, Evaluation, jsonable, paired_difference
from lcx.page import render_page


def write_report(
    out: Path, title: str, question: str, results: Sequence[Evaluation], curves: Curves
) -> Report:
    """Write the report of one experiment into the folder `out`; give back what report.json says.

    `question` is the experiment file's docstring. `curves` holds each variant's rows of training
    metrics ("tokens", "loss"). The first result is the one the others are compared against.

    Raises ValueError when the results cannot be compared: other protocols, other data, other
    target documents, or a name used twice.
    """
    _check_comparable(results)
    report = _summary(results)
    measure = measure_in(report)
    pictures = {
        f"{measure.name}_vs_context": partial(draw_measure, report),
        "training_loss": partial(draw_training, report, curves),
        "state_vs_context": partial(draw_state, report),
    }
    if measure is ACCURACY:
        pictures["accuracy_vs_state"] = partial(draw_recall, report)
    page = render_page(title, question, report, pictures)
    strict = jsonable(report)
    files = {f"{name}.png": render(draw, LIGHT) for name, draw in pictures.items()}
    files["report.html"] = page.encode()
    files["report.json"] = json.dumps(strict, indent=1, allow_nan=False).encode()
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():  # each file is the old one or the new one, never half
        unfinished = out / f".{name}.{os.getpid()}"
        unfinished.write_bytes(content)
        unfinished.replace(out / name)
    return strict


def print_table(report: Report, console: Console) -> None:
    """The measure by variant and context, for a terminal of 80 columns and up to 8 contexts."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("variant", overflow="fold")
    table.add_column("train", justify="right", no_wrap=True, style="dim")
    contexts, best, measure = context_lengths(report), best_variants(report), measure_in(report)
    for c in contexts:
        table.add_column(short_length(c), justify="right", no_wrap=True)
    for name, variant in report["variants"].items():
        cells = [Text(name), Text(short_length(variant["train_len"]))]
        points = {p["context"]: p for p in variant["contexts"]}
        for c in contexts:
            beyond = c > variant["train_len"]
            text = short_number(points.get(c, {}).get(measure.key)) + ("*" if beyond else " ")
            cells.append(Text(text, "bold green" if name in best[c] else "dim" if beyond else ""))
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"{measure.name.capitalize()} by context length in tokens; "
        f"{'lower' if measure.best is min else 'higher'} is better, the best is bold.\n"
        "* longer than the variant was trained on.",
        style="dim",
        highlight=False,
    )


def print_costs(costs: dict[str, Cost], console: Console) -> None:
    """What each variant takes, and what decoding keeps at each length, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("variant", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("MFLOP", justify="right", no_wrap=True)
    lengths = next(iter(costs.values()))["state_bytes"]
    for length in lengths:
        table.add_column(short_length(int(length)), justify="right", no_wrap=True)
    for name, cost in costs.items():
        state = [short_bytes(cost["state_bytes"][length]) for length in lengths]
        flops = megaflops(cost["training_flops"])
        table.add_row(name, short_number(cost["parameters"]), flops, *state)
    console.print(table)
    console.print(
        "Parameters; MFLOP a token of training at its training length, forward and backward; and\n"
        "the state that decoding keeps of a text, by its length in tokens.",
        style="dim",
        highlight=False,
    )


# What the numbers say


def _check_comparable(results: Sequence[Evaluation]) -> None:
    if not results:
        raise ValueError("a report needs the evaluation of at least one variant")
    names = [r["variant"] for r in results]
    if len(set(names)) < len(names):
        raise ValueError(f"two results bear the same variant name: {names}")
    first = results[0]
    for other in results[1:]:
        for part in ("protocol", "data"):
            a, b = jsonable(first[part]), jsonable(other[part])
            for key in sorted(a.keys() | b.keys()):
                if a.get(key) != b.get(key):
                    raise ValueError(
                        f"{first['variant']!r} and {other['variant']!r} cannot be compared: "
                        f"{part}.{key} is {a.get(key)!r} for the one and {b.get(key)!r} for the "
                        "other. Evaluate both again with the same protocol and data."
                    )


def _summary(results: Sequence[Evaluation]) -> Report:
    first, *others = results
    reference = {p["context"]: p for p in first["contexts"]}
    environments = {r["variant"]: r["environment"] for r in results}
    costs = ("cost", "train_len", "train_tokens", "train_seconds", "eval_seconds")
    kept = ("context", "ppl", "bits_per_byte", "ci95", "accuracy", "accuracy_ci95", "tokens")
    return {
        "protocol": first["protocol"],
        "data": first["data"],
        "variants": {
            r["variant"]: {key: r[key] for key in costs}
            | {"contexts": [{key: p[key] for key in kept} for p in r["contexts"]]}
            for r in results
        },
        "differences": {
            "against": first["variant"],
            "variants": {
                r["variant"]: [
                    paired_difference(p, reference[p["context"]])
                    for p in r["contexts"]
                    if p["context"] in reference
                ]
                for r in others
            },
        },
        "environment": _shared(environments),
    }


def _shared(environments: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One value where all variants agree; otherwise each variant's own, by name."""
    keys = dict.fromkeys(key for e in environments.values() for key in e)
    merged = {}
    for key in keys:
        values = {name: e.get(key) for name, e in environments.items()}
        distinct = {json.dumps(jsonable(v), sort_keys=True, default=str) for v in values.values()}
        merged[key] = next(iter(values.values())) if len(distinct) == 1 else values
    return merged
