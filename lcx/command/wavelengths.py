"""What a rotary scheme makes of a longer text, pair by pair: a table and a picture.

A pair of features that has completed a turn within the training's length has met every angle. One
that has not knows only a part of the circle: where a longer text turns it past that part, the model
extrapolates. A scaling slows it down instead, which is to interpolate between angles it knows.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcx.positions import PositionScheme, RoPE, XPos
from lcx.report.look import LIGHT, Look, render
from lcx.spec import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT, INTERPOLATED, EXTRAPOLATED = "kept", "interpolated", "extrapolated"


class Wavelengths(NamedTuple):
    """Each pair's tokens a turn, in training and on the longer text; and what that means."""

    scheme: str
    train_length: int
    length: int
    trained: Float[np.ndarray, " P"]
    stretched: Float[np.ndarray, " P"]
    magnitude: float

    @property
    def turns(self) -> Float[np.ndarray, " P"]:
        """How often each pair has rotated by the end of a training text."""
        return self.train_length / self.trained

    @property
    def known(self) -> Float[np.ndarray, " P"]:
        """The first token whose angle no training text has had; infinite after a whole turn."""
        return np.where(self.turns >= 1, np.inf, self.turns * self.stretched)

    @property
    def verdicts(self) -> list[str]:
        """KEPT, INTERPOLATED or EXTRAPOLATED, of each pair."""
        slower = self.stretched > self.trained * (1 + 1e-6)
        beyond = self.known < self.length * (1 - 1e-6)
        return [
            EXTRAPOLATED if b else INTERPOLATED if s else KEPT
            for s, b in zip(slower, beyond, strict=True)
        ]


def wavelengths(
    position: PositionScheme, width: int, train_length: int, length: int
) -> Wavelengths:
    """Of a scheme on heads of `width` features, trained without its scaling and read with it.

    Raises ValueError where nothing turns, or a length is not positive.
    """
    for name, value in (("train-len", train_length), ("eval-len", length), ("width", width)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, not {value}")
    position.check(width)
    match position:
        case RoPE(theta):
            width = position.rotary_width(width)
            inv_freq, magnitude = position.frequencies(width, length)
        case XPos(theta):
            inv_freq, magnitude = RoPE(theta).frequencies(width, length)
        case _:
            raise ValueError(f"{type(position).__name__} turns no features; RoPE and XPos do")
    base, _ = RoPE(theta).frequencies(width, 0)
    turn = 2 * np.pi
    numbers = train_length, length, turn / np.asarray(base), turn / np.asarray(inv_freq)
    return Wavelengths(describe(position), *numbers, float(np.asarray(magnitude).item()))


def print_wavelengths(waves: Wavelengths, console: Console) -> None:
    """The table, and a sentence that sums it up."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    headers = "pair", "tokens a turn", "turns in training", "slowed by", "", "unseen from token"
    for name in headers:
        table.add_column(name, justify="left" if not name else "right")
    colours = {KEPT: "green", INTERPOLATED: "cyan", EXTRAPOLATED: "red"}
    rows = zip(
        waves.trained, waves.turns, waves.stretched, waves.verdicts, waves.known, strict=True
    )
    for pair, (trained, turns, stretched, verdict, known) in enumerate(rows):
        table.add_row(
            str(pair),
            f"{trained:,.4g}" if trained < 1000 else f"{trained:,.0f}",
            f"{turns:,.3g}" if turns < 1000 else f"{turns:,.0f}",
            f"{stretched / trained:.4g}",
            Text(verdict, colours[verdict]),
            f"{known:,.0f}" if verdict == EXTRAPOLATED else "",
        )
    console.print(table)
    verdicts, pairs = waves.verdicts, len(waves.trained)
    partial = int((waves.turns < 1).sum())
    magnitude = (
        f" Scores are multiplied by {waves.magnitude**2:.4g}." if waves.magnitude != 1 else ""
    )
    console.print(
        f"Trained on {waves.train_length:,} tokens, read to {waves.length:,}: of {pairs} pairs, "
        f"{verdicts.count(KEPT)} kept, {verdicts.count(INTERPOLATED)} interpolated, "
        f"{verdicts.count(EXTRAPOLATED)} extrapolated. {partial} never completed a turn in "
        f"training.{magnitude}",
        highlight=False,
    )


def write_picture(waves: Wavelengths, path: Path) -> None:
    """The picture, as what the file's name ends with: png, svg or pdf."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.removeprefix(".")
    path.write_bytes(render(lambda look, narrow: _draw(waves, look), LIGHT, kind=kind))


def _draw(waves: Wavelengths, look: Look) -> "Figure":
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8.2, 4.8), layout="constrained")
    ax = fig.add_subplot()
    pairs = np.arange(len(waves.trained))
    ax.set_yscale("log")
    ax.set_xlabel("pair of features, from fast to slow")
    ax.set_ylabel("tokens a turn")
    ax.plot(pairs, waves.trained, color=look.faint, linewidth=1, zorder=1)
    ax.plot(
        pairs, waves.trained, "o", markersize=5, markerfacecolor=look.paper, color=look.faint,
        label="in training", zorder=2,
    )  # fmt: skip
    verdicts = np.array(waves.verdicts)
    styles = {
        KEPT: ("o", look.colours[2]),
        INTERPOLATED: ("s", look.colours[0]),
        EXTRAPOLATED: ("^", look.colours[1]),
    }
    for verdict, (marker, colour) in styles.items():
        (at,) = np.nonzero(verdicts == verdict)
        if len(at):
            ax.plot(
                at, waves.stretched[at], marker, color=colour, markersize=6, label=verdict, zorder=3
            )
    low, high = ax.get_ylim()
    high = max(high, 2 * waves.length)
    ax.set_ylim(low, high)
    ax.axhspan(waves.train_length, high, color=look.faint, alpha=0.1, linewidth=0)
    for length, words in (
        (waves.train_length, f"trained on {waves.train_length:,}: above, never a whole turn"),
        (waves.length, f"read to {waves.length:,}"),
    ):
        ax.axhline(length, color=look.ink, linestyle=":", linewidth=1)
        ax.annotate(
            words, (0, length), (4, 3), xycoords=ax.get_yaxis_transform(),
            textcoords="offset points", size=8, color=look.ink,
        )  # fmt: skip
    ax.set_title(waves.scheme, size=10)
    ax.legend(loc="lower right")
    return fig
