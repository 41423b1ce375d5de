"""Which curve is whose: names beside the ends of curves, or below, and room for them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len, chop_cells

from lcx.report.look import Look, style_of
from lcx.wording import isolated, short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Names = Mapping[str, int | None]
"""Names of curves; for its style, the place of each among the variants. None: it is none."""
LONGEST = 28
"""Columns of a name in a picture."""
LINE = 0.17
"""Inches from one line of names to the next."""


def canvas(narrow: bool, names: Sequence[str]) -> tuple["Figure", "Axes"]:
    """An empty picture, for a page or for a telephone, with room for these names."""
    fig = sized(narrow, names, (4.3, 4.5) if narrow else (8.2, 4.5), below=narrow)
    return fig, fig.add_subplot()


def sized(narrow: bool, names: Sequence[str], size: tuple[float, float], below: bool) -> "Figure":
    """A figure of this size, and more height where its names need it, below or at the side."""
    from matplotlib.figure import Figure

    width, height = size
    rows = math.ceil(len(names) / _columns(narrow, names))
    height = height + LINE * rows if below else max(height, 0.6 + LINE * len(names))
    return Figure(figsize=(width, height), layout="constrained")


def name_curves(
    fig: "Figure",
    ax: "Axes",
    look: Look,
    narrow: bool,
    names: Names,
    ends: Sequence[tuple[float, float] | None],
    write: Callable[[float], str] | None = None,
) -> None:
    """Name each curve and its last value beside its end; below the axes on a narrow picture.

    Names are spread apart where ends are close; a thin line leads from a curve to its name.
    """
    shown = [(i, end) for i, end in enumerate(ends) if end is not None]
    if narrow:
        name_below(fig, look, narrow, names, [i for i, _ in shown])
        return
    short, styles = shortened([*names]), [style_of(i, look) for i in names.values()]
    bottom, top = ax.get_ylim()
    to_axes = ax.transData + ax.transAxes.inverted()
    tips = [(x, np.clip(np.nan_to_num(y, nan=top), bottom, top)) for _, (x, y) in shown]
    at = [float(to_axes.transform(tip)[1]) for tip in tips]
    order, gap = sorted(range(len(at)), key=lambda j: at[j]), min(0.062, 1 / max(1, len(at) - 1))
    for _ in range(500):
        for below, above in pairwise(order):
            push = max(0.0, gap - (at[above] - at[below])) / 2
            at[below], at[above] = max(0.0, at[below] - push), min(1.0, at[above] + push)
    for (i, (_, y)), tip, height in zip(shown, tips, at, strict=True):
        style = styles[i]
        if not math.isnan(y):
            line = {"arrowstyle": "-", "color": style["color"], "alpha": 0.5, "lw": 0.8}
            ax.annotate("", tip, (1.025, height), textcoords="axes fraction", arrowprops=line,
                        annotation_clip=False)  # fmt: skip
        ax.plot([1.03, 1.1], [height] * 2, **style | {"marker": None}, linewidth=1.4,
                transform=ax.transAxes, clip_on=False)  # fmt: skip
        ax.plot(1.065, height, **style, markersize=5, transform=ax.transAxes, clip_on=False)
        arrow = "↑" if y > top else ""
        value = short_number(y) if write is None else write(y)
        ax.text(1.115, height, f"{short[i]}  {arrow}{value}", size=8.5, va="center",
                transform=ax.transAxes)  # fmt: skip


def name_below(
    fig: "Figure",
    look: Look,
    narrow: bool,
    names: Names,
    shown: Iterable[int],
    line: bool = True,
) -> None:
    """A legend below the axes, of those curves; without their lines, for a picture of points."""
    from matplotlib.lines import Line2D

    short, places, shown = shortened([*names]), [*names.values()], list(shown)
    styles = [style_of(places[i], look) | ({} if line else {"linestyle": "none"}) for i in shown]
    handles = [Line2D([], [], **style, markersize=5.5) for style in styles]
    legend = fig.legend(
        handles, ["-"] * len(shown), loc="outside lower center", fontsize=8.5,
        ncols=_columns(narrow, [*names]), handlelength=3.2, columnspacing=1,
    )  # fmt: skip
    for text, i in zip(legend.texts, shown, strict=True):
        text.set_text(short[i])  # as a label, one that begins with "_" could be left out


def shortened(names: Sequence[str]) -> list[str]:
    """The names in at most LONGEST columns, which are still different."""
    ends = [_ends_of(name, LONGEST) for name in names]
    return [
        isolated(_apart(name, [n for n, e in zip(names, ends, strict=True) if e == end]) or end)
        for name, end in zip(names, ends, strict=True)
    ]


def _apart(name: str, alike: Sequence[str]) -> str | None:
    """A name with the place where those of the same ends begin to differ; None: there are none."""
    if len(alike) == 1:
        return None
    place = next(j for j, some in enumerate(zip_longest(*alike)) if len(set(some)) > 1)
    return f"{chop_cells(name, 8)[0]}…{_ends_of(name[max(0, place - 4) :], LONGEST - 9)}"


def _ends_of(name: str, columns: int) -> str:
    """Its beginning and its end, if it is wider than these columns."""
    if cell_len(name) <= columns:
        return name
    half = (columns - 1) // 2
    return f"{chop_cells(name, half)[0]}…{chop_cells(name[::-1], columns - 1 - half)[0][::-1]}"


def _columns(narrow: bool, names: Sequence[str]) -> int:
    """How many names of this length stand side by side below the axes."""
    widest = max(map(cell_len, shortened(names)), default=0)
    return max(1, min(4, len(names), int((4.1 if narrow else 8.0) / (0.62 + 0.072 * widest))))
