"""The curves against context length: the measure, what reading on gains, variant against variant.

Each is drawn for a look (light or dark) and a width; its numbers are `lcx.report.series`'s.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lcx.protocols.measures import Measure
from lcx.report.axes import bounded_axis, length_axis, level_axis, log_axis
from lcx.report.look import Look, haze, style_of
from lcx.report.naming import canvas, name_curves
from lcx.report.series import Points, differences, flat, gains, levels
from lcx.report.summary import Report, context_lengths, context_unit, measure_in
from lcx.wording import ratio, short_length, short_number, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_measure(report: Report, look: Look, narrow: bool) -> "Figure":
    """The report's measure against context length, with bands."""
    fig, ax = canvas(narrow, list(report["variants"]))
    measure = measure_in(report)
    _context_axis(ax, report, narrow)
    points = levels(report)
    if measure.bounds is not None:
        top = bounded_axis(ax, measure.bounds)
    else:
        bands = ((row["value"], row["low"], row["high"]) for row in flat(points))
        top = level_axis(ax, _finite(points), bands)
    ax.set_ylabel(measure.name)
    _draw_curves(fig, ax, report, points, top, short_number, look, narrow)
    return fig


def draw_gains(report: Report, look: Look, narrow: bool) -> "Figure":
    """What each variant gains by reading on: against itself at the shortest context."""
    shortest = short_length(context_lengths(report)[0])
    return _draw_comparison(report, gains(report), f"that of context {shortest}", look, narrow)


def draw_differences(report: Report, look: Look, narrow: bool) -> "Figure":
    """Each variant against the first, over the same targets."""
    what = f"that of {report['differences']['against']}"
    return _draw_comparison(report, differences(report), what, look, narrow)


def _draw_comparison(
    report: Report, points: Points, what: str, look: Look, narrow: bool
) -> "Figure":
    """Curves relative to `what`, around the line of equal values."""
    fig, ax = canvas(narrow, list(report["variants"]))
    measure = measure_in(report)
    _context_axis(ax, report, narrow)
    top = _comparison_axis(ax, points, measure, look, what)
    write = ratio if measure.compared == "ratio" else signed
    _draw_curves(fig, ax, report, points, top, write, look, narrow)
    return fig


def _draw_curves(
    fig: "Figure",
    ax: "Axes",
    report: Report,
    points: Points,
    top: float,
    write: Callable[[float], str],
    look: Look,
    narrow: bool,
) -> None:
    """Lines with bands; hollow beyond training; an arrow at the top for what is above it."""
    from matplotlib.markers import CARETUP

    _mark_trained(ax, report, look)
    opacity = haze(0.15, len(points))
    ends: list[tuple[float, float] | None] = []
    for i, name in enumerate(report["variants"]):
        if name not in points:
            ends.append(None)
            continue
        kept = ("context", "value", "low", "high")
        x, y, low, high = np.array([[p[k] for k in kept] for p in points[name]], float).T
        beyond = np.array([not p["trained"] for p in points[name]])
        style = style_of(i, look)
        hollow = style | {"markerfacecolor": look.paper, "linestyle": "none"}
        ax.fill_between(x, low, high, color=style["color"], alpha=opacity, linewidth=0)
        ax.plot(x, y, **style, linewidth=1.7, markersize=5.5)
        ax.plot(x[beyond], y[beyond], **hollow, markersize=5.5)
        if (above := y > top).any():
            edge = style | {"marker": CARETUP, "linestyle": "none", "clip_on": False}
            ax.plot(x[above], np.full(above.sum(), top), **edge, markersize=9)
        ends.append((x[-1], y[-1]))
    name_curves(fig, ax, look, narrow, list(report["variants"]), ends, write)


def _context_axis(ax: "Axes", report: Report, narrow: bool) -> None:
    label = f"context length ({context_unit(report)})"
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
