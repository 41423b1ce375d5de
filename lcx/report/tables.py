"""The tables of a report's page, as HTML."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lcx import spec
from lcx.cost import Cost, uncounted_note
from lcx.experiment import Train
from lcx.protocols.measures import Measure
from lcx.report.look import swatch
from lcx.report.series import best_is_chosen, quality
from lcx.report.summary import Report, bold_variants, context_lengths, measure_in, terms_in
from lcx.wording import megaflops, or_nan, ratio, short_bytes, short_number, signed

Write = Callable[[float | None], str]
SHOWN = 400
"""Characters of each end of a text that is shown for reading."""
DEFAULT_LOSS = spec.describe(Train().loss)


def measure_table(report: Report) -> str:
    """The measure by variant and context: the bold ones are not told apart from the best."""
    measure, bold = measure_in(report), bold_variants(report)

    def cell(name: str, context: int, point: dict[str, Any]) -> str:
        return _level(measure, point, "best" * (name in bold[context]))

    return _by_context(report, measure, cell, _failed(report, len(context_lengths(report)) + 1))


def further_table(report: Report, measure: Measure) -> str:
    """Another measure by variant and context."""
    return _by_context(report, measure, lambda _name, _context, point: _level(measure, point, ""))


def shown_table(report: Report) -> str:
    """What each variant wrote after one prompt, and what its author did."""
    shown = {name: v["shown"] for name, v in report["variants"].items() if v["shown"]}
    first, *_ = shown.values()
    rows = [[_row_name(None, "prompt"), _read(first["prompt"][-SHOWN:])]]
    rows.append([_row_name(None, report["reference"]["name"]), _read(first["author"])])
    rows += [
        [_row_name(i, name), _read(shown[name]["written"])]
        for i, name in enumerate(report["variants"])
        if name in shown
    ]
    return _table(["", "text"], rows)


def in_words(value: Any) -> str:
    """A setting as it is written in an experiment file; others line by line."""
    if isinstance(value, dict) and "type" in value:
        given = {key: x for key, x in value.items() if key != "type" and x != []}
        of = (
            f"{key}=({in_words(x)},)" if isinstance(x, list) else f"{key}={in_words(x)}"
            for key, x in given.items()
        )
        return f"{value['type']}({', '.join(of)})"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {in_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    return str(value)


def _read(text: str) -> str:
    """A text for reading: how it begins, and how it ends."""
    if len(text) > 2 * SHOWN:
        left_out = f"{len(text) - 2 * SHOWN:,} characters"
        between = f"<small>… {left_out} …</small>"
        ends = html.escape(text[:SHOWN]), html.escape(text[-SHOWN:])
        return f'<td class="read">{ends[0]}{between}{ends[1]}</td>'
    return f'<td class="read">{html.escape(text)}</td>'


def gain_table(report: Report) -> str:
    """Each variant's longer contexts against its shortest."""
    return _comparison_table(report, {n: v["gains"] for n, v in report["variants"].items()})


def difference_table(report: Report) -> str:
    """Each later variant against the first."""
    return _comparison_table(report, report["differences"]["variants"])


def variant_table(report: Report) -> str:
    """What each variant is."""
    head = ["variant", "mixers", "layers", "width", "heads", "parameters", "rows x tokens",
            "steps", "training tokens", "learning rate", "seeds", "optimizer"]  # fmt: skip
    rows = []
    for i, (name, v) in enumerate(report["variants"].items()):
        setup = v["setup"]
        trained = setup["steps"] > 0
        start = setup["init_from"]
        begun = "" if start is None else _small(f"from {start}")
        if tune := setup.get("tune"):  # pages show results of earlier versions, too
            begun += _small(f"tuned by {tune}")
        begun += "".join(_small(f"{key}: {in_words(own)}") for key, own in v["own"].items())
        begun += "".join(_small(f"--set {change}") for change in setup["changes"])
        begun += "".join(_small(f"taken as it is: {line}") for line in v["changed"])
        mixers = "<br>".join(html.escape(m) for m in dict.fromkeys(setup["mixers"]))
        spread = _small(setup["positions"]) if setup["positions"] else ""
        rate = setup["learning_rate"]
        cells = [
            f"{setup['layers']}", f"{setup['width']:,}", _heads(setup["heads"]),
            _parameters(v["cost"]),
            f"{setup['batch']:,} x {setup['length']:,}{spread}" if trained else "–",
            f"{setup['steps']:,}" if trained else "–",
            f"{v['train_tokens']:,.0f}" if v["train_tokens"] else "–",
            f"{rate:g}" if trained and rate is not None else "–",
        ]  # fmt: skip
        optimizer = html.escape(setup["optimizer"]) if trained else "–"
        if trained and setup["loss"] != DEFAULT_LOSS:
            optimizer += _small(f"loss: {setup['loss']}")
        rows.append(
            [
                _row_name(i, name, begun),
                f'<td class="text">{mixers}</td>',
                *(f"<td>{c}</td>" for c in cells),
                f"<td>{v['seeds']}</td>",
                f'<td class="text">{optimizer}</td>',
            ]
        )
    return _table(head, [*rows, *_failed(report, len(head) - 1)])


def _parameters(cost: Cost) -> str:
    """How many there are; below, how many of them, and beside them, are trained where few are."""
    tuned = cost.get("tuned_parameters")  # pages show results of earlier versions, too
    return f"{cost['parameters']:,}" + ("" if tuned is None else _small(f"trained: {tuned:,}"))


def cost_table(report: Report) -> str:
    """What training and evaluating took, and the best point for it."""
    measure = measure_in(report)
    best = "best " * best_is_chosen(report)
    head = ["variant", "MFLOP / token", "training FLOPs", "training s", "tokens / s",
            "evaluation s", f"{best}{html.escape(measure.name)}",
            f"at {terms_in(report).short}"]  # fmt: skip
    rows = []
    points = {row["variant"]: row for row in quality(report)}
    for i, (name, v) in enumerate(report["variants"].items()):
        context, trained = points[name]["best_context"], v["train_tokens"] > 0
        cells = [
            megaflops(v["cost"]["training_flops"]),
            short_number(v["train_flops"]) if trained else "–",
            f"{v['train_seconds']:,.1f}" if trained else "–",
            _speed(v),
            f"{v['eval_seconds']:,.1f}", short_number(points[name]["best"]),
            "–" if context is None else f"{context:,}",
        ]  # fmt: skip
        rows.append([_row_name(i, name), *(f"<td>{c}</td>" for c in cells)])
    missing = (n for v in report["variants"].values() for n in v["cost"]["uncounted"])
    note = uncounted_note(missing)
    return _table(head, rows) + (f'\n<p class="note">{html.escape(note)}</p>' if note else "")


def _speed(variant: dict[str, Any]) -> str:
    """Of the median step; small, of the best."""
    if variant["tokens_per_second"] is None:
        return "–"
    best = _small(f"best {variant['best_tokens_per_second']:,.0f}")
    return f"{variant['tokens_per_second']:,.0f}{best}"


def state_table(report: Report) -> str:
    """What decoding keeps, by length."""
    variants = report["variants"]
    lengths = sorted({int(c) for v in variants.values() for c in v["cost"]["state_bytes"]})

    def cell(kept: dict[str, int], length: int) -> str:
        n = kept.get(str(length))
        return f"<td>{'–' if n is None else short_bytes(n)}</td>"

    rows = [
        [_row_name(i, name), *(cell(v["cost"]["state_bytes"], c) for c in lengths)]
        for i, (name, v) in enumerate(variants.items())
    ]
    return _table(["variant", *(f"{c:,}" for c in lengths)], rows)


def interval(ci95: Sequence[float | None], write: Write = short_number) -> str:
    """`low to high`; nothing where it is not known."""
    low, high = map(or_nan, ci95)
    return "" if math.isnan(low + high) else f"{write(low)} to {write(high)}"


def mark(comparison: dict[str, Any], measure: Measure) -> str:
    """How a comparison is told apart from equality: "lower", "higher", or "" for not at all."""
    if not comparison["marked"]:
        return ""
    return "lower" if or_nan(comparison["value"]) < measure.neutral else "higher"


def _by_context(
    report: Report,
    measure: Measure,
    cell: Callable[[str, int, dict[str, Any]], str],
    more: Sequence[list[str]] = (),
) -> str:
    contexts, rows = context_lengths(report), []
    for i, (name, v) in enumerate(report["variants"].items()):
        points = {p["context"]: p for p in v["contexts"]}
        trained = "–" if v["train_len"] is None else f"{v['train_len']:,}"
        cells = [cell(name, c, points[c]) if c in points else "<td>–</td>" for c in contexts]
        rows.append([_row_name(i, name), f"<td>{trained}</td>", *cells])
    if (of := report["reference"]) is not None:
        points = {p["context"]: p for p in of["contexts"]}
        cells = [_level(measure, points[c], "") for c in contexts]
        rows.append([_row_name(None, of["name"]), "<td>–</td>", *cells])
    return _table(["variant", "trained to", *(f"{c:,}" for c in contexts)], [*rows, *more])


def _level(measure: Measure, point: dict[str, Any], kind: str) -> str:
    write = ratio if measure.per == "bytes" or measure.bounds == (0, 1) else short_number
    kinds = " ".join(filter(None, [kind, "" if point["trained"] else "beyond"]))
    return (
        f'<td class="{kinds}" title="{point["tokens"]:,} tokens">{write(point[measure.key])}'
        f"<small>{interval(point[measure.interval], write) or '–'}</small></td>"
    )


def _comparison_table(report: Report, compared: dict[str, list[dict[str, Any]]]) -> str:
    measure = measure_in(report)
    lower, higher = ("good", "bad") if measure.best is min else ("bad", "good")
    looks = {"": ("", ""), "lower": (lower, "▼ "), "higher": (higher, "▲ ")}
    contexts = sorted({x["context"] for points in compared.values() for x in points})
    write = ratio if measure.compared == "ratio" else signed

    def cell(x: dict[str, Any] | None) -> str:
        if x is None:
            return "<td>–</td>"
        kind, sign = looks[mark(x, measure)]
        between = interval(x["ci95"], write) or "–"
        return f'<td class="{kind}">{sign}{write(x["value"])}<small>{between}</small></td>'

    rows = []
    for i, name in enumerate(report["variants"]):
        if name in compared:
            points = {x["context"]: x for x in compared[name]}
            rows.append([_row_name(i, name), *(cell(points.get(c)) for c in contexts)])
    return _table(["variant", *(f"{c:,}" for c in contexts)], rows)


def _heads(heads: Sequence[int | None]) -> str:
    return ", ".join("–" if h is None else str(h) for h in dict.fromkeys(heads))


def _row_name(i: int | None, name: str, more: str = "") -> str:
    return f'<th scope="row">{swatch(i)}<bdi>{html.escape(name)}</bdi>{more}</th>'


def _failed(report: Report, columns: int) -> list[list[str]]:
    """A row for each run that could not be trained or evaluated, which says why."""
    return [
        [
            f'<th scope="row"><bdi>{html.escape(name)}</bdi></th>',
            f'<td class="text" colspan="{columns}">failed: {html.escape(reason)}</td>',
        ]
        for name, reason in report["failures"].items()
    ]


def _small(text: str) -> str:
    return f"<small>{html.escape(text)}</small>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are ready-made: `<th>...` or `<td>...`."""
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    kinds = {"mixers": "text", "optimizer": "text", "text": "text"}
    top = "".join(f'<th scope="col" class="{kinds.get(h, "")}">{h}</th>' for h in head)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
