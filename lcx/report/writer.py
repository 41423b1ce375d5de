"""From evaluations to a report: report.json, pictures, their numbers, report.html, a table."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcx.cost import Cost, uncounted_note
from lcx.evaluation.metrics import Evaluation, jsonable
from lcx.report.page import render_page
from lcx.report.pictures import pictures_of
from lcx.report.sentences import ties_in_words
from lcx.report.series import as_csv
from lcx.report.summary import (
    NONE,
    Curves,
    Report,
    bold_variants,
    context_lengths,
    context_unit,
    measure_in,
    summarise,
    terms_in,
)
from lcx.wording import (
    listed,
    megaflops,
    plural,
    short_bytes,
    short_count,
    short_length,
    short_number,
)


def write_report(
    out: Path,
    title: str,
    question: str,
    results: Sequence[Evaluation],
    curves: Curves,
    failures: Mapping[str, str] = NONE,
) -> Report:
    """Write the report of one experiment into the folder `out`; give back what report.json says.

    `question` is the experiment file's docstring; `results` has one for each run of each variant.
    The first variant is the one the others are compared against. `failures` has, for each run that
    could not be trained or evaluated, the reason. Each picture comes as PNG, SVG and
    PDF, with its numbers as CSV.

    Raises ValueError when the results cannot be compared: other protocols, other data, other
    target documents, or a run that is there twice.
    """
    report = summarise(results, curves, failures)
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
    """The measure by variant and context, for a terminal of 80 columns."""
    contexts, bold, measure = context_lengths(report), bold_variants(report), measure_in(report)
    terms, rows = terms_in(report), []
    for name, variant in report["variants"].items():
        changed = "†" if variant["setup"]["changes"] else ""
        trained = variant["train_len"]
        length = "–" if trained is None else short_length(trained)
        cells = [Text(f"{name}{changed}"), Text(length, "dim")]
        points = {p["context"]: p for p in variant["contexts"]}
        for c in contexts:
            point = points.get(c, {})
            beyond = not point.get("trained", True)
            text = short_number(point.get(measure.key)) + ("*" if beyond else " ")
            cells.append(Text(text, "bold green" if name in bold[c] else "dim" if beyond else ""))
        rows.append(cells)
    if (of := report["reference"]) is not None:
        points = {p["context"]: short_number(p[measure.key]) for p in of["contexts"]}
        cells = [Text(f"{points.get(c, '')} ") for c in contexts]
        rows.append([Text(of["name"], "italic"), Text("–", "dim"), *cells])
    left_out = _print_by_length(["variant", "train"], contexts, rows, 16, console)
    for name, reason in report["failures"].items():
        console.print(f"{name} failed: {reason}", style="red")
    setups = [variant["setup"] for variant in report["variants"].values()]
    changes = dict.fromkeys(change for s in setups for change in s["changes"])
    _print_note(
        f"{measure.name.capitalize()} by {terms.axis} in {context_unit(report)}; "
        f"{'lower' if measure.best is min else 'higher'} is better. {ties_in_words(report)}\n"
        "* some tokens were predicted from more of them than the variant was trained on."
        + (f"\n† changed by --set: {listed(list(changes))}." if changes else "")
        + (f"\nThe page has {plural(left_out, f'more {terms.short}')}." if left_out else ""),
        console,
    )


def print_costs(costs: dict[str, Cost], console: Console) -> None:
    """What each variant takes, and what decoding keeps at each length, for a terminal."""
    lengths = [int(length) for length in next(iter(costs.values()))["state_bytes"]]
    few = any(cost["tuned_parameters"] is not None for cost in costs.values())
    rows = [
        [
            Text(name),
            Text(short_count(cost["parameters"])),
            *([Text(_trained(cost))] if few else []),
            Text(megaflops(cost["training_flops"])),
            *(Text(short_bytes(cost["state_bytes"][str(length)])) for length in lengths),
        ]
        for name, cost in costs.items()
    ]
    head = ["variant", "params", *(["trained"] if few else []), "MFLOP"]
    left_out = _print_by_length(head, lengths, rows, 28, console)
    _print_note(
        f"Parameters{', and how many are trained' if few else ''}; MFLOP per token of training at "
        "its training length, forward and backward; and the bytes of state that decoding keeps of "
        "a text, by its length in tokens."
        + (f" A wider terminal shows {plural(left_out, 'more length')}." if left_out else ""),
        console,
    )
    if note := uncounted_note(n for cost in costs.values() for n in cost["uncounted"]):
        console.print(note)


def _trained(cost: Cost) -> str:
    tuned = cost["tuned_parameters"]
    return short_count(cost["parameters"] if tuned is None else tuned)


def _print_by_length(
    head: list[str], lengths: list[int], rows: list[list[Text]], whole: int, console: Console
) -> int:
    """A table whose last columns are lengths; how many of these had no room.

    Names of up to `whole` columns stay in one line; for that, lengths go: the first and the last
    stay.
    """
    titles = [*head, *map(short_length, lengths)]
    widths = [
        max([cell_len(title), *(row[j].cell_len for row in rows)]) for j, title in enumerate(titles)
    ]
    fixed = len(head)
    room = console.width - min(widths[0], whole) - sum(w + 1 for w in widths[1:fixed]) - 2
    kept = len(lengths)
    while kept > 2 and sum(widths[fixed + j] + 1 for j in _spread(kept, len(lengths))) > room:
        kept -= 1
    shown = [*range(fixed), *(fixed + j for j in _spread(kept, len(lengths)))]
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column(Text(titles[0]), overflow="fold")
    for j in shown[1:]:
        table.add_column(Text(titles[j]), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[j] for j in shown))
    console.print(table)
    return len(lengths) - kept


def _spread(kept: int, of: int) -> list[int]:
    """So many places of a list, at even distances, first and last among them."""
    return [round(j * (of - 1) / max(1, kept - 1)) for j in range(kept)]


def _print_note(text: str, console: Console) -> None:
    console.print(Text(text, "dim"))
