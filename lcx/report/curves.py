"""The curves against context length, or what else a protocol's points stand against: the measure,
what reading on gains, variant against variant, and further measures.

Each is drawn for a look (light or dark) and a width; its numbers are `lcx.report.series`'s.
"""

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from lcx.protocols.measures import Measure
from lcx.report.axes import bounded_axis, length_axis, level_axis, log_axis
from lcx.report.look import Look, haze, style_of
from lcx.report.naming import Names, canvas, name_below, name_curves, sized
from lcx.report.series import Points, differences, flat, gains, levels, reference
from lcx.report.summary import (
    Report,
    context_lengths,
    context_unit,
    further_measures,
    measure_in,
    terms_in,
)
from lcx.wording import ratio, short_length, short_number, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_measure(report: Report, look: Look, narrow: bool) -> "Figure":
    """The report's measure against context length, with bands."""
    measure = measure_in(report)
    points, against = levels(report, measure), reference(report, measure)
    names = _names(report, points, against)
    fig, ax = canvas(narrow, [*names])
    _context_axis(ax, report, narrow)
    if measure.bounds is not None:
        top = bounded_axis(ax, measure.bounds)
    else:
        bands = ((row["value"], row["low"], row["high"]) for row in flat(points))
        top = level_axis(ax, _finite(points), bands)
    ax.set_ylabel(measure.name)
    _mark_trained(ax, report, look)
    ends = _draw_curves(ax, names, points | against, top, look)
    name_curves(fig, ax, look, narrow, names, ends, short_number)
    return fig


def draw_further(report: Report, look: Look, narrow: bool) -> "Figure":
    """Each further measure in a picture of its own, small and side by side."""
    measures, columns = further_measures(report), 2 if narrow else 3
    rows = math.ceil(len(measures) / columns)
    drawn = [(m, levels(report, m), reference(report, m)) for m in measures]
    names = _names(report, drawn[0][1], drawn[0][2])
    size = (4.3, 1.8 * rows) if narrow else (8.2, 2.1 * rows)
    fig = sized(narrow, [*names], size, below=True)
    grid = fig.subplots(rows, columns, squeeze=False)
    for ax in grid.flat[len(measures) :]:
        ax.remove()
    for at, (measure, points, against) in enumerate(drawn):
        ax = grid.flat[at]
        length_axis(ax, context_lengths(report), "", narrow=True)
        if at >= len(measures) - columns:
            ax.set_xlabel(f"{terms_in(report).axis} ({context_unit(report)})", size=8)
        _draw_curves(ax, names, points | against, math.inf, look, small=True)
        ax.set_title(_in_lines(measure.name, 22), size=8.5, loc="left")
        ax.tick_params(labelsize=7.5)
        if measure.bounds is not None:  # what lies near a bound is not blown up
            low, high = measure.bounds
            top = max([float(values.max()) for values in _finite(points | against)], default=high)
            top = max(min(1.25 * top, 1.03 * high), 0.05)
            ax.set_ylim(low - 0.03 * top, top)
    name_below(fig, look, narrow, names, range(len(names)))
    return fig


def _in_lines(name: str, columns: int) -> str:
    return "\n".join(textwrap.wrap(name, columns))


def _names(report: Report, points: Points, against: Points) -> Names:
    """The variants, and what they are held against, in the order in which they are drawn."""
    places: dict[str, int | None] = {name: i for i, name in enumerate(report["variants"])}
    return places | dict.fromkeys(against)


def draw_gains(report: Report, look: Look, narrow: bool) -> "Figure":
    """What each variant gains by reading on: against itself at the shortest context."""
    shortest = short_length(context_lengths(report)[0])
    what = f"that of {terms_in(report).short} {shortest}"
    return _draw_comparison(report, gains(report), what, look, narrow)


def draw_differences(report: Report, look: Look, narrow: bool) -> "Figure":
    """Each variant against the first, over the same targets."""
    what = f"that of {report['differences']['against']}"
    return _draw_comparison(report, differences(report), what, look, narrow)


def _draw_comparison(
    report: Report, points: Points, what: str, look: Look, narrow: bool
) -> "Figure":
    """Curves relative to `what`, around the line of equal values."""
    names, measure = _names(report, points, {}), measure_in(report)
    fig, ax = canvas(narrow, [*names])
    _context_axis(ax, report, narrow)
    top = _comparison_axis(ax, points, measure, look, what)
    _mark_trained(ax, report, look)
    ends = _draw_curves(ax, names, points, top, look)
    write = ratio if measure.compared == "ratio" else signed
    name_curves(fig, ax, look, narrow, names, ends, write)
    return fig


def _draw_curves(
    ax: "Axes", names: Names, points: Points, top: float, look: Look, small: bool = False
) -> list[tuple[float, float] | None]:
    """Lines with bands; hollow beyond training; an arrow at the top for what is above it.

    Where each curve ends; None for a name that has none.
    """
    from matplotlib.markers import CARETUP

    opacity, size = haze(0.15, len(points)), 3.5 if small else 5.5
    ends: list[tuple[float, float] | None] = []
    for name, i in names.items():
        if name not in points:
            ends.append(None)
            continue
        kept = ("context", "value", "low", "high")
        x, y, low, high = np.array([[p[k] for k in kept] for p in points[name]], float).T
        beyond = np.array([not p["trained"] for p in points[name]])
        style = style_of(i, look)
        hollow = style | {"markerfacecolor": look.paper, "linestyle": "none"}
        ax.fill_between(x, low, high, color=style["color"], alpha=opacity, linewidth=0)
        ax.plot(x, y, **style, linewidth=1.2 if small else 1.7, markersize=size)
        ax.plot(x[beyond], y[beyond], **hollow, markersize=size)
        if (above := y > top).any():
            edge = style | {"marker": CARETUP, "linestyle": "none", "clip_on": False}
            ax.plot(x[above], np.full(above.sum(), top), **edge, markersize=9)
        ends.append((x[-1], y[-1]))
    return ends


def _context_axis(ax: "Axes", report: Report, narrow: bool) -> None:
    label = f"{terms_in(report).axis} ({context_unit(report)})"
    length_axis(ax, context_lengths(report), label, narrow)


def _mark_trained(ax: "Axes", report: Report, look: Look) -> None:
    """A dotted line between the last context within training and the first beyond it.

    None where contexts count bytes, of which each variant's tokens take up others.
    """
    if context_unit(report) == "bytes":
        return
    edges: dict[int, list[float]] = {}
    for variant in report["variants"].values():
        within = [p["context"] for p in variant["contexts"] if p["trained"]]
        beyond = [p["context"] for p in variant["contexts"] if not p["trained"]]
        if within and beyond:
            edges.setdefault(variant["train_len"], []).append(math.sqrt(within[-1] * beyond[0]))
    for place, (length, at) in enumerate(sorted(edges.items())):
        x = min(at)
        ax.axvline(x, color=look.faint, linestyle=":", linewidth=1.2, zorder=1)
        said = f"trained to\n{short_length(length)}" if place == 0 else short_length(length)
        ax.annotate(
            said, (x, 1), (0, 3), xycoords=ax.get_xaxis_transform(),
            textcoords="offset points", size=7.5, color=look.faint, ha="center", va="bottom",
        )  # fmt: skip


def _finite(points: Points) -> list[np.ndarray]:
    """The finite values of each curve that has some."""
    values = (np.array([p["value"] for p in curve], float) for curve in points.values())
    return [v for v in (v[np.isfinite(v)] for v in values) if v.size]


def _comparison_axis(ax: "Axes", points: Points, measure: Measure, look: Look, what: str) -> float:
    """A y axis around what equal values give; its upper limit.

    Where lower is better, what is far above may not squash what lies below: the axis reaches twice
    as far up as down, or to where the better half of every curve is in sight.
    """
    of = np.log if measure.compared == "ratio" else np.asarray
    rows = [row for curve in points.values() for row in curve if math.isfinite(row["value"])]
    y, bottom, top = (of(np.array([row[k] for row in rows])) for k in ("value", "low", "high"))
    low, high = (float(pick(0, *y)) for pick in (min, max))
    if measure.best is min:
        halves = [float(np.quantile(of(v), 0.5, method="lower")) for v in _finite(points)]
        high = min(high, max(0.2, -2 * low, *(1.15 * half for half in halves)))
    span = max(high - low, 0.01)  # bands may take as much again
    top = top[(y <= high) & np.isfinite(top)]
    low, high = (
        max(low - span, min([low, *bottom[np.isfinite(bottom)]])) - 0.05 * span,
        min(high + span, max([high, *top])) + 0.05 * span,
    )
    if measure.compared == "ratio":
        log_axis("y", ax, math.exp(low), math.exp(high), lambda y: f"{y:,.4g}")
        top = math.exp(high)
    else:
        ax.set_ylim(low, high)
        top = high
    ax.axhline(measure.neutral, color=look.faint, linewidth=1.2, zorder=1)
    joined = "relative to" if measure.compared == "ratio" else "less"
    ax.set_ylabel(f"{measure.name}, {joined} {what}")
    return top
