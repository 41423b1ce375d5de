"""Axes of pictures: ticks where the curves are, and limits that one wild curve does not set."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from lcx.wording import short_bytes, short_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
