"""The pictures of a report: perplexity (or accuracy) against context length, training loss, state.

Each is drawn for a look (light or dark) and a width; the words around them are in report.py.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lcx.metrics import PERPLEXITY, Measure, measure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = dict[str, Any]
Curves = dict[str, list[dict[str, Any]]]


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
MARKERS = "os^DvPX<p>hd"


def _style(i: int, look: Look) -> dict[str, Any]:
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
        metadata = {"Date": None} if kind == "svg" else None
        draw(look, narrow).savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def _canvas(narrow: bool) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(4.3, 4.9) if narrow else (8.2, 4.5), layout="constrained")
    return fig, fig.add_subplot()


def draw_measure(report: Report, look: Look, narrow: bool) -> "Figure":
    """Perplexity or accuracy against context length, with bands, as `write_report` sums it up."""
    from matplotlib.markers import CARETUP

    fig, ax = _canvas(narrow)
    measure = measure_in(report)
    contexts = context_lengths(report)
    _length_axis(ax, contexts)
    points = {
        name: np.array(
            [[p["context"], p[measure.key], *p[measure.interval]] for p in v["contexts"]], float
        )
        for name, v in report["variants"].items()
    }
    if measure is PERPLEXITY:
        top = _log_axis(ax, [p[:, 1:] for p in points.values()])
    else:
        top = 1.03
        ax.set_ylim(-0.03, top)
    ax.set_ylabel(measure.name)
    for length in sorted({v["train_len"] for v in report["variants"].values()}):
        if contexts[0] <= length <= contexts[-1]:
            ax.axvline(length, color=look.faint, linestyle=":", linewidth=1.2, zorder=1)
            ax.annotate(
                f"trained at\n{short_length(length)}", (length, 1), (0, 3),
                xycoords=ax.get_xaxis_transform(), textcoords="offset points",
                size=7.5, color=look.faint, ha="center", va="bottom",
            )  # fmt: skip
    haze = 0.15 if len(points) <= 6 else 0.08
    for i, (name, (x, y, low, high)) in enumerate((n, p.T) for n, p in points.items()):
        style = _style(i, look)
        hollow = style | {"markerfacecolor": look.paper, "linestyle": "none"}
        ax.fill_between(x, low, high, color=style["color"], alpha=haze, linewidth=0)
        ax.plot(x, y, **style, linewidth=1.7, markersize=5.5)
        beyond = x > report["variants"][name]["train_len"]
        ax.plot(x[beyond], y[beyond], **hollow, markersize=5.5)
        if (above := y > top).any():  # an arrow at the edge stands for what would not fit
            edge = style | {"marker": CARETUP, "linestyle": "none", "clip_on": False}
            ax.plot(x[above], np.full(above.sum(), top), **edge, markersize=9)
    ends = [(p[-1, 0], p[-1, 1]) for p in points.values()]
    _name_curves(fig, ax, look, narrow, list(points), ends)
    return fig


def draw_state(report: Report, look: Look, narrow: bool) -> "Figure":
    """What decoding keeps, against the length of the text: both on log scales."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    fig, ax = _canvas(narrow)
    variants = report["variants"].items()
    kept = {name: list(v["cost"]["state_bytes"].values()) for name, v in variants}
    lengths = [int(c) for c in next(iter(report["variants"].values()))["cost"]["state_bytes"]]
    _length_axis(ax, lengths)
    ax.set_xlabel("length of the text (tokens)")
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_locator(LogLocator(base=2, numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short_bytes(y)))
    ax.set_ylabel("state (bytes)")
    for i, y in enumerate(kept.values()):
        ax.plot(lengths, y, **_style(i, look), linewidth=1.7, markersize=5.5)
    ends = [(lengths[-1], y[-1]) for y in kept.values()]
    _name_curves(fig, ax, look, narrow, list(kept), ends, short_bytes)
    return fig


def draw_recall(report: Report, look: Look, narrow: bool) -> "Figure":
    """Accuracy at the longest context against what decoding keeps there: one point a variant."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    fig, ax = _canvas(narrow)
    longest = context_lengths(report)[-1]
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=5 if narrow else 9))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short_bytes(x)))
    ax.set_xlabel(f"state after {longest:,} tokens (bytes)")
    ax.set_ylabel(f"accuracy at {longest:,} tokens")
    ax.set_ylim(-0.03, 1.03)
    ends = []
    for i, v in enumerate(report["variants"].values()):
        point = next(p for p in v["contexts"] if p["context"] == longest)
        ends.append((v["cost"]["state_bytes"][str(longest)], point["accuracy"]))
        ax.plot(*ends[-1], **_style(i, look), markersize=7)
    _name_curves(fig, ax, look, narrow, list(report["variants"]), ends)
    return fig


def draw_training(report: Report, curves: Curves, look: Look, narrow: bool) -> "Figure":
    """Training loss against tokens, for the variants of `report` that were trained."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    fig, ax = _canvas(narrow)
    ax.set_xlabel("tokens trained on")
    ax.set_ylabel("training loss (nats per token)")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
    ends, highs = [], []
    for i, name in enumerate(report["variants"]):
        rows = [row for row in curves.get(name, []) if row.get("loss") is not None]
        loss = np.array([row["loss"] for row in rows], dtype=float)
        if not np.isfinite(loss).any():  # not trained: evaluated as another variant left it
            ends.append(None)
            continue
        tokens = np.array([row["tokens"] for row in rows], dtype=float)
        style = _style(i, look) | {"marker": None}
        # One batch's loss is mostly noise: it stays faint behind the mean over 1/40 of the run.
        window = max(1, len(loss) // 40)
        mean = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        if window > 1:
            ax.plot(tokens, loss, **style | {"linestyle": "-"}, linewidth=0.6, alpha=0.25)
        ax.plot(tokens[window - 1 :], mean, **style, linewidth=1.6)
        highs.append(np.quantile(loss[np.isfinite(loss)], 0.98))
        ends.append((tokens[-1], mean[-1]))
    if highs:  # the first few steps, and a run that diverged, may leave the picture
        ax.set_ylim(top=1.05 * min(max(highs), 3 * min(highs)))
    else:
        ax.text(0.5, 0.5, "no training was recorded", ha="center", transform=ax.transAxes)
    _name_curves(fig, ax, look, narrow, list(report["variants"]), ends)
    return fig


def _length_axis(ax: "Axes", lengths: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [short_length(c) for c in lengths])
    ax.set_xlim(lengths[0] / 2**0.3, lengths[-1] * 2**0.3)
    ax.set_xlabel("context length (tokens)")


def _log_axis(ax: "Axes", values: list[np.ndarray]) -> float:
    """A log y axis with plain numbers that fits `values`, one array a curve; its upper limit.

    A curve that blows up may not squash the rest: the axis ends at 32 times the lowest value, or
    where every curve shows at least its lowest point.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    finite = [v for v in (v[np.isfinite(v)] for v in values) if v.size] or [np.array([1.0, 10.0])]
    low, high = min(v.min() for v in finite), max(v.max() for v in finite)
    high = min(high, max(32 * low, min(1.2 * max(v.min() for v in finite), 1000 * low)))
    pad = max((high / low) ** 0.06, 1.03)
    ax.set_yscale("log")
    ax.set_ylim(low / pad, high * pad)
    if high / low < 5:
        ax.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    else:
        few, many = (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)
        ax.yaxis.set_major_locator(LogLocator(subs=many if high / low < 40 else few))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    return high * pad


def _name_curves(
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
    short = {name: name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}" for name in names}
    if narrow:
        handles = [Line2D([], [], **_style(i, look), label=short[n]) for i, n, _ in shown]
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
        style = _style(i, look)
        if not math.isnan(y):
            line = {"arrowstyle": "-", "color": style["color"], "alpha": 0.5, "lw": 0.8}
            ax.annotate("", tip, (1.03, height), textcoords="axes fraction", arrowprops=line,
                        annotation_clip=False)  # fmt: skip
        ax.plot(1.04, height, **style, markersize=5, transform=ax.transAxes, clip_on=False)
        arrow = "↑" if y > top else ""
        value = short_number(y) if write is None else write(y)
        ax.text(1.06, height, f"{short[name]}  {arrow}{value}", size=8.5, va="center",
                transform=ax.transAxes)  # fmt: skip


def measure_in(report: Report) -> Measure:
    """What the report is about."""
    return measure_of(report["protocol"]["type"])


def best_variants(report: Report) -> dict[int, set[str]]:
    """Who is best at each context; several names on an exact tie."""
    measure, best = measure_in(report), {}
    for c in context_lengths(report):
        values = {
            name: p[measure.key]
            for name, v in report["variants"].items()
            for p in v["contexts"]
            if p["context"] == c and math.isfinite(or_nan(p[measure.key]))
        }
        best[c] = {n for n, x in values.items() if x == measure.best(values.values())}
    return best


def context_lengths(report: Report) -> list[int]:
    """Every context length that some variant was scored at, ascending."""
    return sorted({p["context"] for v in report["variants"].values() for p in v["contexts"]})


def or_nan(x: float | None) -> float:
    """JSON says null where a number is not finite."""
    return math.nan if x is None else float(x)


def short_number(x: float | None) -> str:
    """Six characters at most, whatever the size: 3.50, 26.1, 1234, 1.2e5, 4.0e-5, ∞, –."""
    x = or_nan(x)
    if not math.isfinite(x):
        return "–" if math.isnan(x) else "∞"
    if x == 0 or 0.01 <= abs(x) < 1e4:
        return f"{x:.{2 if abs(x) < 10 else 1 if abs(x) < 100 else 0}f}"
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def megaflops(flops: float | None) -> str:
    """FLOPs in millions; a dash where they are not known."""
    return "–" if flops is None else f"{flops / 1e6:,.2f}"


def short_bytes(n: float) -> str:
    """512B, 64k, 1.5M, 3G: in powers of 1024, three figures."""
    units = ("B", "k", "M", "G", "T")
    power = next((i for i in range(len(units)) if n < 1000 * 1024**i), len(units) - 1)
    return f"{n / 1024**power:.3g}{units[power]}"


def short_length(tokens: int) -> str:
    """512, 1k, 8k; as it stands when it is no multiple of 1024."""
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
