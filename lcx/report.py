"""From evaluations to a page: report.json, two pictures, report.html, a table in the terminal.

The page opens offline and asks nothing of the network: pictures are inlined, once for each of light
and dark, wide and narrow screens, and the reader's browser chooses.
"""

import base64
import html
import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcx.figures import (
    DARK,
    LIGHT,
    Curves,
    Look,
    Report,
    context_lengths,
    draw_perplexity,
    draw_training,
    or_nan,
    render,
    short_length,
    short_number,
)
from lcx.metrics import Evaluation, jsonable, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = {
    "SameTargets": "Every variant predicts the same last {targets} tokens of each document, after "
    "exactly as many of the tokens before them as the context length says. Only the context "
    "varies, so points compare token by token, along one curve and from curve to curve.",
    "Sliding": "Windows as long as the context advance by {stride} tokens through each document. "
    "Each scores its last {stride} tokens, and the first all it holds: every token is scored once, "
    "and after the first window sees at most {stride} tokens less than the whole context.",
    "ByPosition": "Each document is read once from its start. A point averages the tokens that "
    "follow at least the previous context length and fewer than its own, so different points "
    "score different tokens, and early ones are harder whatever a model does with its context.",
}
"""What each protocol does, for the reader of the page; filled in with its settings."""


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
    pictures = {
        "ppl_vs_context": partial(draw_perplexity, report),
        "training_loss": partial(draw_training, report, curves),
    }
    page = _page(title, question, report, results, pictures)
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
    """Perplexity by variant and context, for a terminal of 80 columns and up to 8 contexts."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("variant", overflow="fold")
    table.add_column("train", justify="right", no_wrap=True, style="dim")
    contexts, best = context_lengths(report), _best(report)
    for c in contexts:
        table.add_column(short_length(c), justify="right", no_wrap=True)
    for name, variant in report["variants"].items():
        cells = [Text(name), Text(short_length(variant["train_len"]))]
        points = {p["context"]: p for p in variant["contexts"]}
        for c in contexts:
            beyond = c > variant["train_len"]
            text = short_number(points.get(c, {}).get("ppl")) + ("*" if beyond else " ")
            cells.append(Text(text, "bold green" if name in best[c] else "dim" if beyond else ""))
        table.add_row(*cells)
    console.print(table)
    console.print(
        "Perplexity by context length in tokens; lower is better, the best is bold.\n"
        "* longer than the variant was trained on.",
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
    costs = ("params", "train_len", "train_tokens", "train_seconds")
    kept = ("context", "ppl", "bits_per_byte", "ci95", "tokens")
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


def _best(report: Report) -> dict[int, set[str]]:
    """Who has the lowest perplexity at each context; several names on an exact tie."""
    best = {}
    for c in context_lengths(report):
        ppl = {
            name: p["ppl"]
            for name, v in report["variants"].items()
            for p in v["contexts"]
            if p["context"] == c and or_nan(p["ppl"]) < math.inf
        }
        best[c] = {name for name, x in ppl.items() if x == min(ppl.values())}
    return best


# The page


def _page(
    title: str,
    question: str,
    report: Report,
    results: Sequence[Evaluation],
    pictures: dict[str, Callable[[Look, bool], "Figure"]],
) -> str:
    template = Template(resources.files("lcx").joinpath("report.html").read_text("utf-8"))
    protocol, data = report["protocol"], report["data"]
    words = WORDS.get(protocol["type"], "").format(**protocol)
    return template.substitute(
        title=html.escape(title),
        question=_prose(question),
        light=_swatches(LIGHT),
        dark=_swatches(DARK),
        perplexity_picture=_picture(pictures["ppl_vs_context"], "Perplexity by context"),
        finding=html.escape(_finding(report)),
        perplexity_table=_perplexity_table(report),
        difference_table=_difference_table(report),
        cost_table=_cost_table(results),
        training_picture=_picture(pictures["training_loss"], "Training loss against tokens"),
        protocol_words=html.escape(words),
        protocol=_facts(protocol),
        data=_facts(data),
        environment=_facts(report["environment"]),
    )


def _prose(text: str) -> str:
    """Paragraphs of a docstring; indented ones, such as a command line, as they stand."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n".join(
        f"<pre>{html.escape(inspect.cleandoc(p))}</pre>" if p.startswith(" ")
        else f"<p>{html.escape(p)}</p>"
        for p in paragraphs
        if p.strip()
    )  # fmt: skip


def _swatches(look: Look) -> str:
    return " ".join(f"--c{i}: {c};" for i, c in enumerate(look.colours))


def _picture(draw: Callable[[Look, bool], "Figure"], alt: str) -> str:
    def uri(look: Look, narrow: bool) -> str:
        svg = base64.b64encode(render(draw, look, narrow, "svg")).decode()
        return f"data:image/svg+xml;base64,{svg}"

    dark, small = "(prefers-color-scheme: dark)", "(max-width: 640px)"
    return (
        f'<picture><source media="{dark} and {small}" srcset="{uri(DARK, True)}">'
        f'<source media="{dark}" srcset="{uri(DARK, False)}">'
        f'<source media="{small}" srcset="{uri(LIGHT, True)}">'
        f'<img alt="{html.escape(alt)}" src="{uri(LIGHT, False)}"></picture>'
    )


def _finding(report: Report) -> str:
    longest = context_lengths(report)[-1]
    name = next((n for n in report["variants"] if n in _best(report)[longest]), None)
    if name is None:
        return f"No variant has a finite perplexity at {longest:,} tokens."
    point = next(p for p in report["variants"][name]["contexts"] if p["context"] == longest)
    return (
        f"At {longest:,} tokens of context {name} has the lowest perplexity: "
        f"{short_number(point['ppl'])}{_interval(point['ci95'], ' (95% interval {})')}."
    )


def _interval(ci95: Sequence[float | None], pattern: str = "{}") -> str:
    low, high = map(or_nan, ci95)
    if math.isnan(low + high):
        return ""
    return pattern.format(f"{short_number(low)} to {short_number(high)}")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are ready-made: `<th>...` or `<td>...`."""
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    top = "".join(f'<th scope="col">{h}</th>' for h in head)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row_name(i: int, name: str) -> str:
    lap, hue = divmod(i, len(LIGHT.colours))
    swatch = f'<i class="{"ring" if lap % 2 else ""}" style="color: var(--c{hue})"></i>'
    return f'<th scope="row">{swatch}{html.escape(name)}</th>'


def _perplexity_table(report: Report) -> str:
    contexts, best = context_lengths(report), _best(report)

    def cell(name: str, variant: dict[str, Any], c: int) -> str:
        point = next((p for p in variant["contexts"] if p["context"] == c), None)
        kinds = ["beyond"] * (c > variant["train_len"]) + ["best"] * (name in best[c])
        kinds += ["edge"] * (c == min((x for x in contexts if x > variant["train_len"]), default=0))
        if point is None:
            return f'<td class="{" ".join(kinds)}">–</td>'
        bits = or_nan(point["bits_per_byte"])
        hover = f"{bits:.3f} bits per byte, {point['tokens']:,} tokens"
        return (
            f'<td class="{" ".join(kinds)}" title="{hover}">{short_number(point["ppl"])}'
            f"<small>{_interval(point['ci95']) or '–'}</small></td>"
        )

    rows = [
        [_row_name(i, name), f"<td>{v['train_len']:,}</td>", *(cell(name, v, c) for c in contexts)]
        for i, (name, v) in enumerate(report["variants"].items())
    ]
    return _table(["variant", "trained at", *(f"{c:,}" for c in contexts)], rows)


def _difference_table(report: Report) -> str:
    against, contexts = report["differences"]["against"], context_lengths(report)

    def cell(point: dict[str, Any] | None) -> str:
        if point is None:
            return "<td>–</td>"
        low, high = map(or_nan, point["ci95"])
        kind = "lower" if high < 1 else "higher" if low > 1 else ""
        mark = {"lower": "▼ ", "higher": "▲ "}.get(kind, "")
        ratio = _ratio(point["ratio"])
        between = "–" if math.isnan(low + high) else f"{_ratio(low)} to {_ratio(high)}"
        return f'<td class="{kind}">{mark}{ratio}<small>{between}</small></td>'

    rows = []
    for i, name in enumerate(report["variants"]):
        if name != against:
            points = {p["context"]: p for p in report["differences"]["variants"][name]}
            rows.append([_row_name(i, name), *(cell(points.get(c)) for c in contexts)])
    if not rows:
        return "<p>There is one variant, and nothing to compare it with.</p>"
    return (
        f"<p>Perplexity divided by that of <b>{html.escape(against)}</b>. ▼ lower, ▲ higher: the "
        "interval leaves out 1. It resamples documents jointly for both variants, so it can tell "
        "apart two curves whose own bands overlap.</p>"
        + _table(["variant", *(f"{c:,}" for c in contexts)], rows)
    )


def _ratio(x: float) -> str:
    return f"{x:.3f}" if 0.01 <= x < 10 else short_number(x)


def _cost_table(results: Sequence[Evaluation]) -> str:
    head = ["variant", "parameters", "training length", "training tokens", "training s",
            "tokens / s", "evaluation s"]  # fmt: skip
    rows = []
    for i, r in enumerate(results):
        tokens, seconds = r["train_tokens"], r["train_seconds"]
        speed = f"{tokens / seconds:,.0f}" if seconds > 0 else "–"
        cells = [f"{r['params']:,}", f"{r['train_len']:,}", f"{tokens:,}", f"{seconds:,.1f}",
                 speed, f"{r['eval_seconds']:,.1f}"]  # fmt: skip
        rows.append([_row_name(i, r["variant"]), *(f"<td>{c}</td>" for c in cells)])
    return _table(head, rows)


def _facts(facts: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "\n".join(f"{key}: {text(item)}" for key, item in value.items())
        if isinstance(value, list | tuple):
            return ", ".join(map(text, value))
        return str(value)

    rows = (
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(text(value))}</dd>"
        for key, value in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"
