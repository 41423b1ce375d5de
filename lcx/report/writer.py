"""From evaluations to a report: report.json, pictures, their numbers, report.html, a table."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcx.cost import Cost
from lcx.evaluation.metrics import Evaluation, jsonable
from lcx.report.page import render_page
from lcx.report.pictures import pictures_of
from lcx.report.sentences import ties_in_words
from lcx.report.series import as_csv
from lcx.report.summary import (
    Curves,
    Report,
    bold_variants,
    context_lengths,
    context_unit,
    measure_in,
    summarise,
)
from lcx.wording import megaflops, short_bytes, short_length, short_number


def write_report(
    out: Path, title: str, question: str, results: Sequence[Evaluation], curves: Curves
) -> Report:
    """Write the report of one experiment into the folder `out`; give back what report.json says.

    `question` is the experiment file's docstring; `results` has one for each run of each variant.
    The first variant is the one the others are compared against. Each picture comes as PNG, SVG and
    PDF, with its numbers as CSV.

    Raises ValueError when the results cannot be compared: other protocols, other data, other
    target documents, or a run that is there twice.
    """
    report = summarise(results, curves)
    pictures = pictures_of(report, curves)
    strict = jsonable(report)
    files = {
        "report.html": render_page(title, question, report, pictures).encode(),
        "report.json": json.dumps(strict, indent=1, allow_nan=False).encode(),
    }
    for name, picture in pictures.items():
        files[f"{name}.svg"] = picture.svg
        for kind in ("png", "pdf"):
            files[f"{name}.{kind}"] = picture.draw_as(kind)
        files[f"{name}.csv"] = as_csv(picture.rows)
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
    contexts, bold, measure = context_lengths(report), bold_variants(report), measure_in(report)
    for c in contexts:
        table.add_column(short_length(c), justify="right", no_wrap=True)
    for name, variant in report["variants"].items():
        cells = [Text(name), Text(short_length(variant["train_len"]))]
        points = {p["context"]: p for p in variant["contexts"]}
        for c in contexts:
            point = points.get(c, {})
            beyond = not point.get("trained", True)
            text = short_number(point.get(measure.key)) + ("*" if beyond else " ")
            cells.append(Text(text, "bold green" if name in bold[c] else "dim" if beyond else ""))
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"{measure.name.capitalize()} by context length in {context_unit(report)}; "
        f"{'lower' if measure.best is min else 'higher'} is better. {ties_in_words(report)}\n"
        "* some targets were predicted from more tokens than the variant was trained on.",
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
        "Parameters; MFLOP per token of training at its training length, forward and backward;\n"
        "and the state that decoding keeps of a text, by its length in tokens.",
        style="dim",
        highlight=False,
    )
