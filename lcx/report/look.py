"""How pictures look: colours, canvas, axes with ticks where the curves are, names of curves."""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lcx.wording import short_bytes, short_length, short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """Colours of a picture, as hex."""

    ink: str
    faint: str
    paper: str
    colours: tuple[str, ...]


# Six hues that stay apart (CIE Lab distance of 12 or more) under the three simulated kinds of
# colour blindness; from the seventh variant on they come again, dashed.
LIGHT = Look(
    "#1c2128", "#8b939e", "#ffffff",
    ("#0072b2", "#d55e00", "#009e73", "#8e3b8c", "#d89b00", "#4ba3dc"),
)  # fmt: skip
DARK = Look(
    "#e3e7ec", "#7f8894", "#15181d",
    ("#4c9be8", "#f0803c", "#2cb58c", "#d68ac8", "#f2c14e", "#9ad7ff"),
)  # fmt: skip
MARKERS = "os^DvPX<p>hd*"
"""Thirteen, so that it takes 156 variants until a colour, a line and a marker meet again."""


def style_of(i: int, look: Look) -> dict[str, Any]:
    """Colour, marker and line of the variant at place i."""
    n = len(look.colours)
    return {
        "color": look.colours[i % n],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": "-" if i // n % 2 == 0 else (0, (4, 1.6)),
    }


def render(
    draw: Callable[[Look, bool], "Figure"], look: Look, narrow: bool = False, kind: str = "png"
) -> bytes:
    """The picture as a file of the given kind, under a look of its own and no global style."""
    import matplotlib

    style = {
        "font.size": 9.5,
        "svg.hashsalt": "lcx",  # the same report, the same bytes
        "figure.facecolor": look.paper,
        "axes.facecolor": look.paper,
        "axes.edgecolor": look.faint,
        "axes.labelcolor": look.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": look.faint,
        "grid.alpha": 0.22,
        "text.color": look.ink,
        "xtick.color": look.faint,
        "ytick.color": look.faint,
        "xtick.labelcolor": look.ink,
        "ytick.labelcolor": look.ink,
        "legend.frameon": False,
    }
    buffer = io.BytesIO()
    with matplotlib.rc_context(style):
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        draw(look, narrow).savefig(buffer, format=kind, dpi=200, metadata=undated.get(kind))
    return buffer.getvalue()


def darkened(svg: str) -> str:
    """A picture drawn under LIGHT as it is under DARK: every colour has its counterpart."""
    pairs = {LIGHT.ink: DARK.ink, LIGHT.faint: DARK.faint, LIGHT.paper: DARK.paper}
    pairs |= dict(zip(LIGHT.colours, DARK.colours, strict=True))
    return re.sub("|".join(pairs), lambda found: pairs[found[0]], svg)


def canvas(narrow: bool) -> tuple["Figure", "Axes"]:
    """An empty picture, for a page or for a telephone."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(4.3, 4.9) if narrow else (8.2, 4.5), layout="constrained")
    return fig, fig.add_subplot()


# Axes


def length_axis(ax: "Axes", lengths: list[int], label: str, narrow: bool) -> None:
    """A log x axis with a tick at each length; where these crowd, some go without their number."""
    ax.set_xscale("log", base=2)
    low, high = lengths[0] / 2**0.3, lengths[-1] * 2**0.3
    ends = [lengths[-1], lengths[0], *lengths[1:-1]]
    named = set(_spaced(ends, low, high, 0.095 if narrow else 0.05))
    ax.set_xticks(lengths, [short_length(c) if c in named else "" for c in lengths])
    ax.minorticks_off()
    ax.set_xlim(low, high)
    ax.set_xlabel(label)


def log_axis(
    axis: Literal["x", "y"],
    ax: "Axes",
    low: float,
    high: float,
    write: Callable[[float], str],
    ticks: Callable[[float, float, float], list[float]] | None = None,
) -> None:
    """A log axis from low to high, with round numbers at even distances, however short it is.

    ticks: as `log_ticks`, for other numbers.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    getattr(ax, f"set_{axis}scale")("log")
    getattr(ax, f"set_{axis}lim")(low, high)
    one = ax.xaxis if axis == "x" else ax.yaxis
    gap = 0.13 if axis == "x" else 0.075
    one.set_major_locator(FixedLocator((ticks or log_ticks)(low, high, gap)))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter(FuncFormatter(lambda x, _: write(x)))


def log_ticks(low: float, high: float, gap: float) -> list[float]:
    """Round numbers in [low, high], no two nearer on a log scale than this share of its length."""
    from matplotlib.ticker import MaxNLocator

    if high / low < 3:
        even = MaxNLocator(max(2, int(0.6 / gap)), steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [float(x) for x in even if low <= x <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_first = (1, 5, 2, 3, 7, 1.5, 4, 2.5, 6, 8, 1.2)
    return sorted(_spaced((m * 10.0**d for m in round_first for d in decades), low, high, gap))


def bounded_axis(ax: "Axes", bounds: tuple[float, float]) -> float:
    """A linear y axis from bound to bound, with a little room; its upper limit."""
    low, high = bounds
    room = 0.03 * (high - low)
    ax.set_ylim(low - room, high + room)
    return high + room


def level_axis(
    ax: "Axes", curves: list[np.ndarray], bands: Iterable[tuple[float, float, float]] = ()
) -> float:
    """A log y axis that fits the curves' values; its upper limit.

    bands: value, low and high of points; what is in sight shows its band, up to twice the range.

    A curve that blows up may not squash the rest: the axis ends at 32 times the lowest value, or
    where every curve shows at least its lowest point.
    """
    finite = curves or [np.array([1.0, 10.0])]
    low, high = min(v.min() for v in finite), max(v.max() for v in finite)
    high = min(high, max(32 * low, min(1.2 * max(v.min() for v in finite), 1000 * low)))
    room = max(high / low, 1.3)
    seen = [(a, b) for y, a, b in bands if math.isfinite(a + b) and y <= high]
    low, high = (
        max(low / room, min([low, *(a for a, _ in seen)])),
        min(high * room, max([high, *(b for _, b in seen)])),
    )
    pad = max((high / low) ** 0.06, 1.03)
    log_axis("y", ax, low / pad, high * pad, lambda y: f"{y:,g}")
    return high * pad


def bytes_axis(axis: Literal["x", "y"], ax: "Axes", values: Sequence[float]) -> None:
    """A log axis of bytes, with ticks at powers of 2 around the values."""

    def powers_of_2(low: float, high: float, gap: float) -> list[float]:
        powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
        order = sorted(powers, key=lambda p: (p % 10 != 0, p % 5 != 0, p % 2 != 0))
        return sorted(_spaced((2.0**p for p in order), low, high, gap)) or sorted(set(values))

    log_axis(axis, ax, min(values) / 1.4, max(values) * 1.4, short_bytes, powers_of_2)


def _spaced(candidates: Iterable[float], low: float, high: float, gap: float) -> list[float]:
    """Of the candidates, the earlier first, those that keep their distance from each other."""
    chosen: list[float] = []
    for x in candidates:
        if low <= x <= high:
            near = (abs(math.log(x / y)) / math.log(high / low) for y in chosen)
            if min(near, default=math.inf) >= gap:
                chosen.append(x)
    return chosen


def name_curves(
    fig: "Figure",
    ax: "Axes",
    look: Look,
    narrow: bool,
    names: list[str],
    ends: Sequence[tuple[float, float] | None],
    write: Callable[[float], str] | None = None,
) -> None:
    """Name each curve and its last value beside its end; below the axes on a narrow picture.

    Names are spread apart where ends are close; a thin line leads from a curve to its name.
    """
    from matplotlib.lines import Line2D

    shown = [(i, names[i], end) for i, end in enumerate(ends) if end is not None]
    short = {name: _shortened(name) for name in names}
    if narrow:
        handles = [Line2D([], [], **style_of(i, look), label=short[n]) for i, n, _ in shown]
        fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5)
        return
    bottom, top = ax.get_ylim()
    to_axes = ax.transData + ax.transAxes.inverted()
    tips = [(x, np.clip(np.nan_to_num(y, nan=top), bottom, top)) for _, _, (x, y) in shown]
    at = [float(to_axes.transform(tip)[1]) for tip in tips]
    order, gap = sorted(range(len(at)), key=lambda j: at[j]), min(0.062, 1 / max(1, len(at) - 1))
    for _ in range(500):
        for below, above in pairwise(order):
            push = max(0.0, gap - (at[above] - at[below])) / 2
            at[below], at[above] = max(0.0, at[below] - push), min(1.0, at[above] + push)
    for (i, name, (_, y)), tip, height in zip(shown, tips, at, strict=True):
        style = style_of(i, look)
        if not math.isnan(y):
            line = {"arrowstyle": "-", "color": style["color"], "alpha": 0.5, "lw": 0.8}
            ax.annotate("", tip, (1.03, height), textcoords="axes fraction", arrowprops=line,
                        annotation_clip=False)  # fmt: skip
        ax.plot(1.04, height, **style, markersize=5, transform=ax.transAxes, clip_on=False)
        arrow = "↑" if y > top else ""
        value = short_number(y) if write is None else write(y)
        ax.text(1.06, height, f"{short[name]}  {arrow}{value}", size=8.5, va="center",
                transform=ax.transAxes)  # fmt: skip


def name_points(fig: "Figure", look: Look, narrow: bool, names: list[str]) -> None:
    """A legend below, for a picture of several axes."""
    from matplotlib.lines import Line2D

    marks = [style_of(i, look) | {"linestyle": "none"} for i in range(len(names))]
    handles = [Line2D([], [], **m, label=_shortened(n)) for m, n in zip(marks, names, strict=True)]
    fig.legend(handles=handles, loc="outside lower center", ncols=2 if narrow else 4, fontsize=8.5)


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}"
