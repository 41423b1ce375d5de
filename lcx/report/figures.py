"""The pictures of what a variant took: quality against cost, the state of decoding, training.

Each is drawn for a look (light or dark) and a width.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lcx.report.axes import bounded_axis, bytes_axis, length_axis, level_axis, log_axis
from lcx.report.look import Look, haze, style_of
from lcx.report.naming import Names, canvas, name_below, name_curves, sized
from lcx.report.series import best_is_chosen, loss_unit, quality
from lcx.report.summary import Curves, Report, context_lengths, context_unit, measure_in, terms_in
from lcx.wording import short_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_quality(report: Report, look: Look, narrow: bool) -> "Figure":
    """Quality against cost: the best point by training FLOPs, the longest context by state."""
    from matplotlib.ticker import EngFormatter

    size, grid = ((4.3, 6.9), (2, 1)) if narrow else ((8.2, 4), (1, 2))
    names = _places(report)
    fig = sized(narrow, [*names], size, below=True)
    left, right = fig.subplots(*grid)
    measure, longest = measure_in(report), context_lengths(report)[-1]
    rows = quality(report)
    for ax, cost, value in ((left, "training_flops", "best"), (right, "state_bytes", "at_longest")):
        spots = [(i, r[cost], r[value]) for i, r in enumerate(rows)]
        spots = [(i, x, y) for i, x, y in spots if x > 0 and math.isfinite(y)]
        if not spots:
            none = all(r["training_flops"] == 0 for r in rows) and cost == "training_flops"
            said = "nothing was trained" if none else "not known"
            ax.text(0.5, 0.5, said, ha="center", transform=ax.transAxes)
            ax.set(xticks=[], yticks=[])
            continue
        xs = [x for _, x, _ in spots]
        if measure.bounds is not None:
            bounded_axis(ax, measure.bounds)
        else:
            level_axis(ax, [np.array([y]) for _, _, y in spots])
        if cost == "state_bytes":
            bytes_axis("x", ax, xs)
        else:
            log_axis("x", ax, min(xs) / 1.4, max(xs) * 1.4, EngFormatter(sep=""))
        for i, x, y in spots:
            ax.plot(x, y, **style_of(i, look) | {"linestyle": "none"}, markersize=7)
    left.set_xlabel("training (FLOPs)")
    terms, at = terms_in(report), f"at {longest:,} {context_unit(report)}"
    best = f"at each one's best {terms.short}" if best_is_chosen(report) else at
    left.set_ylabel(f"{measure.name}, {best}")
    right.set_xlabel(f"state after {longest:,} tokens (bytes)")
    right.set_ylabel(f"{measure.name}, {at}")
    name_below(fig, look, narrow, names, range(len(names)), line=False)
    return fig


def draw_state(report: Report, look: Look, narrow: bool) -> "Figure":
    """What decoding keeps, against the length of the text: both on log scales."""
    fig, ax = canvas(narrow, list(report["variants"]))
    kept = {name: v["cost"]["state_bytes"] for name, v in report["variants"].items()}
    lengths = sorted({int(c) for y in kept.values() for c in y})
    length_axis(ax, lengths, "length of the text (tokens)", narrow)
    bytes_axis("y", ax, [y for of_one in kept.values() for y in of_one.values()])
    ax.set_ylabel("state (bytes)")
    ends = []
    for i, of_one in enumerate(kept.values()):
        x, y = list(map(int, of_one)), list(of_one.values())
        ax.plot(x, y, **style_of(i, look), linewidth=1.7, markersize=5.5)
        ends.append((x[-1], y[-1]))
    name_curves(fig, ax, look, narrow, _places(report), ends, short_bytes)
    return fig


def draw_training(report: Report, curves: Curves, look: Look, narrow: bool) -> "Figure":
    """Training loss against tokens, and the loss on the validation split where it was measured."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    fig, ax = canvas(narrow, list(report["variants"]))
    ax.set_xlabel("tokens trained on")
    ax.set_ylabel(f"loss ({loss_unit(report)})")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
    ax.yaxis.set_major_locator(MaxNLocator(8))
    ends, highs = [], []
    for i, name in enumerate(report["variants"]):
        drawn = _draw_losses(ax, curves.get(name, []), i, look, haze(0.3, len(curves)))
        ends.append(drawn and drawn[:2])
        highs += drawn[2:] if drawn else ()  # not trained: evaluated as another variant left it
    if highs:  # the first few steps, and a run that diverged, may leave the picture
        ax.set_ylim(top=1.05 * min(max(highs), 3 * min(highs)))
    else:
        ax.text(0.5, 0.5, "no training was recorded", ha="center", transform=ax.transAxes)
    name_curves(fig, ax, look, narrow, _places(report), ends)
    return fig


def _places(report: Report) -> Names:
    return {name: i for i, name in enumerate(report["variants"])}


def _draw_losses(
    ax: "Axes", runs: Sequence[Sequence[dict[str, Any]]], i: int, look: Look, opacity: float
) -> tuple[float, float, float] | None:
    """One variant's curve; its last tokens and mean loss, and what 98% of its losses lie under."""
    rows = [[row for row in run if row.get("loss") is not None] for run in runs]
    rows = [run for run in rows if run]
    if not rows:
        return None
    style = style_of(i, look)
    line = style | {"marker": None}
    n = min(map(len, rows))  # a run that is not finished has fewer
    tokens = np.array([row["tokens"] for row in rows[0][:n]], float)
    losses = np.array([[row["loss"] for row in run[:n]] for run in rows], float)
    # One batch's loss is mostly noise: it stays faint behind the mean over 1/40 of the run.
    window = max(1, n // 40)
    means = [np.convolve(loss, np.full(window, 1 / window), mode="valid") for loss in losses]
    faint = means if len(rows) > 1 else losses if window > 1 else ()
    for loss in faint:
        x = tokens[n - len(loss) :]
        ax.plot(x, loss, **line | {"linestyle": "-"}, linewidth=0.6, alpha=opacity, zorder=1.5)
    mean = np.mean(means, axis=0)
    # A few markers, at other places than those of its neighbours, for those who see no colours.
    few = max(1, len(mean) // 5)
    places = slice(few * (1 + i % 6) // 7, None, few)
    ax.plot(tokens[window - 1 :], mean, **style, markevery=places, markersize=4.5, linewidth=1.5)
    held_out: dict[float, list[float]] = {}
    for row in (row for run in rows for row in run if row.get("validation_loss") is not None):
        held_out.setdefault(row["step"], []).append(row["validation_loss"])
    if held_out:
        at = {row["step"]: row["tokens"] for row in rows[0]}
        dotted = style | {"linestyle": (0, (1, 1.6)), "markerfacecolor": look.paper}
        whole = [step for step, found in held_out.items() if len(found) == len(rows) and step in at]
        y = [np.mean(held_out[step]) for step in whole]
        ax.plot([at[step] for step in whole], y, **dotted, linewidth=1.4, markersize=4)
    return tokens[-1], mean[-1], float(np.quantile(losses[np.isfinite(losses)], 0.98))
