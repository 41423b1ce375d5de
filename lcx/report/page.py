"""The report as one HTML page that opens offline and asks nothing of the network.

Pictures are inlined, once for each of light and dark, wide and narrow screens; the reader's browser
chooses.
"""

import base64
import html
import inspect
from collections.abc import Callable
from importlib import resources
from string import Template
from typing import Any

from lcx.report.look import DARK, LIGHT, Look, darkened
from lcx.report.pictures import Picture
from lcx.report.sentences import (
    bands_in_words,
    comparisons_in_words,
    finding,
    gains_in_words,
    shape_in_words,
    speeds_in_words,
    ties_in_words,
    trained_in_words,
    weights_in_words,
)
from lcx.report.series import best_is_chosen
from lcx.report.summary import Report, further_measures, measure_in, terms_in
from lcx.report.tables import (
    cost_table,
    difference_table,
    further_table,
    gain_table,
    in_words,
    measure_table,
    shown_table,
    state_table,
    variant_table,
)

Telling = Callable[[Report], str]


def render_page(title: str, question: str, report: Report, pictures: dict[str, Picture]) -> str:
    """The page of a report; `pictures` by name, the one of its measure first."""
    template = Template(resources.files("lcx.report").joinpath("report.html").read_text("utf-8"))
    measure = measure_in(report)
    drawn = {name: _picture(picture) for name, picture in pictures.items()}
    first, *_ = drawn.values()

    def section(name: str, title: str, words: Telling, table: Telling) -> str:
        """A picture, what is said of it and its numbers, if the report has that picture."""
        if name not in drawn:
            return ""
        return (
            f"<h2>{title}</h2>\n<figure>\n{drawn[name]}\n"
            f"<figcaption>{html.escape(words(report))}</figcaption>\n</figure>\n{table(report)}"
        )

    terms = terms_in(report)
    return template.substitute(
        title=html.escape(title),
        question=_prose(question),
        light=_swatches(LIGHT),
        dark=_swatches(DARK),
        Measure=measure.name.capitalize(),
        axis=terms.axis,
        better="Lower" if measure.best is min else "Higher",
        measure_picture=first,
        finding=html.escape(finding(report)),
        shape=html.escape(shape_in_words(report)),
        bands=html.escape(bands_in_words(report)),
        trained=html.escape(trained_in_words(report)),
        ties=html.escape(ties_in_words(report)),
        measure_table=measure_table(report),
        gains=section(
            f"gain_vs_{terms.short}", "What reading on gains", gains_in_words, gain_table
        ),
        differences=section(
            f"difference_vs_{terms.short}",
            "Variant against variant",
            comparisons_in_words,
            difference_table,
        ),
        further=_further(report, drawn.get(f"further_measures_vs_{terms.short}")),
        shown=_shown(report),
        quality_points=_quality_points(report),
        variant_table=variant_table(report),
        quality_picture=drawn["quality_vs_cost"],
        speeds=html.escape(speeds_in_words(report)),
        cost_table=cost_table(report),
        state_picture=drawn["state_vs_context"],
        state_table=state_table(report),
        training_picture=drawn["training_loss"],
        protocol_words=html.escape(report["about"]["words"]),
        weights=html.escape(weights_in_words(report)),
        protocol=_facts(report["protocol"]),
        data=_facts(report["data"]),
        environment=_facts(report["environment"]),
    )


def _further(report: Report, picture: str | None) -> str:
    """The other measures: small pictures of all, if there are any, and a table of each."""
    measures = further_measures(report)
    if not measures:
        return ""
    tables = "\n".join(
        f"<h3>{html.escape(m.name.capitalize())}</h3>\n"
        f'<p class="note">{html.escape(m.formula)}.</p>\n{further_table(report, m)}'
        for m in measures
    )
    figure = f"<figure>\n{picture}\n</figure>\n" if picture else ""
    return f"<h2>Further measures</h2>\n{figure}{tables}"


def _shown(report: Report) -> str:
    """One text of each variant, where they have written some."""
    if not any(v["shown"] for v in report["variants"].values()):
        return ""
    return (
        '<h2>What they write</h2>\n<p class="note">After the first prompt: where it ends, what its '
        f"author wrote, and the first text of each variant.</p>\n{shown_table(report)}"
    )


def _quality_points(report: Report) -> str:
    short = terms_in(report).short
    longest = f"the point of the longest {short}"
    left = "the best point of each curve" if best_is_chosen(report) else longest
    return html.escape(
        f"Left: {left} against the multiplications and additions of all its training. Right: "
        f"{longest} against what decoding keeps of a text so long."
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


def _picture(picture: Picture) -> str:
    wide, narrow = picture.svg.decode(), picture.draw_as("svg", narrow=True).decode()

    def uri(svg: str) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"

    dark, small = "(prefers-color-scheme: dark)", "(max-width: 640px)"
    return (
        f'<picture><source media="{dark} and {small}" srcset="{uri(darkened(narrow))}">'
        f'<source media="{dark}" srcset="{uri(darkened(wide))}">'
        f'<source media="{small}" srcset="{uri(narrow)}">'
        f'<img alt="{html.escape(picture.alt)}" src="{uri(wide)}"></picture>'
    )


def _facts(facts: dict[str, Any]) -> str:
    rows = (
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(in_words(value))}</dd>"
        for key, value in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"
