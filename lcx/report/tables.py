"""The tables of a report's page, as HTML."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lcx import spec
from lcx.cost import uncounted_note
from lcx.experiment import Train
from lcx.protocols.measures import Measure
from lcx.report.look import swatch
from lcx.report.series import quality
from lcx.report.summary import Report, bold_variants, context_lengths, measure_in
from lcx.wording import megaflops, or_nan, ratio, short_bytes, short_number, signed

Write = Callable[[float | None], str]
DEFAULT_LOSS = spec.describe(Train().loss)


def measure_table(report: Report) -> str:
    """The measure by variant and context: the bold ones are not told apart from the best."""
    measure, bold = measure_in(report), bold_variants(report)

    def cell(name: str, context: int, point: dict[str, Any]) -> str:
        return _level(measure, point, "best" * (name in bold[context]))

    return _by_context(report, cell, _failed(report, len(context_lengths(report)) + 1))


def byte_table(report: Report, measure: Measure) -> str:
    """A measure per byte by variant and context, which other tokenizers' can be held against."""
    return _by_context(report, lambda _name, _context, point: _level(measure, point, ""))


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
        begun += "".join(_small(f"--set {change}") for change in setup["changes"])
        begun += "".join(_small(f"taken as it is: {line}") for line in v["changed"])
        mixers = "<br>".join(html.escape(m) for m in dict.fromkeys(setup["mixers"]))
        spread = _small(setup["positions"]) if setup["positions"] else ""
        rate = setup["learning_rate"]
        cells = [
            f"{setup['layers']}", f"{setup['width']:,}", _heads(setup["heads"]),
            f"{v['cost']['parameters']:,}",
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


def cost_table(report: Report) -> str:
    """What training and evaluating took, and the best point for it."""
    measure = measure_in(report)
    head = ["variant", "MFLOP / token", "training FLOPs", "training s", "tokens / s",
            "evaluation s", f"best {html.escape(measure.name)}", "at context"]  # fmt: skip
    rows = []
    best = {row["variant"]: row for row in quality(report)}
    for i, (name, v) in enumerate(report["variants"].items()):
        context, trained = best[name]["best_context"], v["train_tokens"] > 0
        cells = [
            megaflops(v["cost"]["training_flops"]),
            short_number(v["train_flops"]) if trained else "–",
            f"{v['train_seconds']:,.1f}" if trained else "–",
            _speed(v),
            f"{v['eval_seconds']:,.1f}", short_number(best[name]["best"]),
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
    cell: Callable[[str, int, dict[str, Any]], str],
    more: Sequence[list[str]] = (),
) -> str:
    contexts, rows = context_lengths(report), []
    for i, (name, v) in enumerate(report["variants"].items()):
        points = {p["context"]: p for p in v["contexts"]}
        trained = "–" if v["train_len"] is None else f"{v['train_len']:,}"
        cells = [cell(name, c, points[c]) if c in points else "<td>–</td>" for c in contexts]
        rows.append([_row_name(i, name), f"<td>{trained}</td>", *cells])
    return _table(["variant", "trained to", *(f"{c:,}" for c in contexts)], [*rows, *more])


def _level(measure: Measure, point: dict[str, Any], kind: str) -> str:
    write = ratio if measure.per == "bytes" else short_number
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


def _row_name(i: int, name: str, more: str = "") -> str:
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
    kinds = {"mixers": "text", "optimizer": "text"}
    top = "".join(f'<th scope="col" class="{kinds.get(h, "")}">{h}</th>' for h in head)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
