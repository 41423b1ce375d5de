"""The report as one HTML page that opens offline and asks nothing of the network.

Pictures are inlined, once for each of light and dark, wide and narrow screens; the reader's browser
chooses.
"""

import base64
import html
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

from lcx.figures import (
    DARK,
    LIGHT,
    Look,
    Report,
    best_variants,
    context_lengths,
    measure_in,
    megaflops,
    or_nan,
    render,
    short_bytes,
    short_number,
)

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
    "Recall": "A document holds random pairs of a key and a value, a quarter of the context length "
    "of them, then asks for each by its key, in random order. Only the values that can be known "
    "are scored: accuracy is the share of pairs that the model kept.",
}
"""What each protocol does, for the reader of the page; filled in with its settings."""


def render_page(
    title: str,
    question: str,
    report: Report,
    pictures: dict[str, Callable[[Look, bool], "Figure"]],
) -> str:
    """The page of a report; `pictures` by name, the one of its measure first."""
    template = Template(resources.files("lcx").joinpath("report.html").read_text("utf-8"))
    protocol, data = report["protocol"], report["data"]
    words = WORDS.get(protocol["type"], "").format(**protocol)
    measure = measure_in(report)
    alts = {
        f"{measure.name}_vs_context": f"{measure.name.capitalize()} by context",
        "training_loss": "Training loss against tokens",
        "state_vs_context": "Bytes of state against length",
        "accuracy_vs_state": "Accuracy against bytes of state",
    }
    drawn = {name: _picture(draw, alts[name]) for name, draw in pictures.items()}
    return template.substitute(
        title=html.escape(title),
        question=_prose(question),
        light=_swatches(LIGHT),
        dark=_swatches(DARK),
        measure=measure.name,
        Measure=measure.name.capitalize(),
        better="Lower" if measure.best is min else "Higher",
        measure_picture=drawn[f"{measure.name}_vs_context"],
        finding=html.escape(_finding(report)),
        measure_table=_measure_table(report),
        recall_figure=_recall_figure(drawn.get("accuracy_vs_state")),
        difference_table=_difference_table(report),
        cost_table=_cost_table(report),
        state_picture=drawn["state_vs_context"],
        state_table=_state_table(report),
        training_picture=drawn["training_loss"],
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


def _recall_figure(picture: str | None) -> str:
    caption = "What a variant recalls at the longest context, against what it has to keep for it."
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>" if picture else ""


def _finding(report: Report) -> str:
    longest, measure = context_lengths(report)[-1], measure_in(report)
    name = next((n for n in report["variants"] if n in best_variants(report)[longest]), None)
    if name is None:
        return f"No variant has a finite {measure.name} at {longest:,} tokens."
    point = next(p for p in report["variants"][name]["contexts"] if p["context"] == longest)
    most = "lowest" if measure.best is min else "highest"
    value, interval = short_number(point[measure.key]), point[measure.interval]
    return (
        f"At {longest:,} tokens of context {name} has the {most} {measure.name}: "
        f"{value}{_interval(interval, ' (95% interval {})')}."
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


def _measure_table(report: Report) -> str:
    contexts, best, measure = context_lengths(report), best_variants(report), measure_in(report)

    def cell(name: str, variant: dict[str, Any], c: int) -> str:
        point = next((p for p in variant["contexts"] if p["context"] == c), None)
        kinds = ["beyond"] * (c > variant["train_len"]) + ["best"] * (name in best[c])
        kinds += ["edge"] * (c == min((x for x in contexts if x > variant["train_len"]), default=0))
        if point is None:
            return f'<td class="{" ".join(kinds)}">–</td>'
        bits = or_nan(point["bits_per_byte"])
        hover = f"{bits:.3f} bits per byte, {point['tokens']:,} tokens"
        return (
            f'<td class="{" ".join(kinds)}" title="{hover}">{short_number(point[measure.key])}'
            f"<small>{_interval(point[measure.interval]) or '–'}</small></td>"
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


def _cost_table(report: Report) -> str:
    head = ["variant", "parameters", "training length", "MFLOP / token", "training tokens",
            "training s", "tokens / s", "evaluation s"]  # fmt: skip
    rows = []
    for i, (name, v) in enumerate(report["variants"].items()):
        tokens, seconds, cost = v["train_tokens"], v["train_seconds"], v["cost"]
        speed = f"{tokens / seconds:,.0f}" if seconds > 0 else "–"
        cells = [f"{cost['parameters']:,}", f"{v['train_len']:,}",
                 megaflops(cost["training_flops"]), f"{tokens:,}", f"{seconds:,.1f}",
                 speed, f"{v['eval_seconds']:,.1f}"]  # fmt: skip
        rows.append([_row_name(i, name), *(f"<td>{c}</td>" for c in cells)])
    return _table(head, rows)


def _state_table(report: Report) -> str:
    variants = report["variants"]
    lengths = list(next(iter(variants.values()))["cost"]["state_bytes"])
    rows = [
        [
            _row_name(i, name),
            *(f"<td>{short_bytes(v['cost']['state_bytes'][c])}</td>" for c in lengths),
        ]
        for i, (name, v) in enumerate(variants.items())
    ]
    return _table(["variant", *(f"{int(c):,}" for c in lengths)], rows)


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
