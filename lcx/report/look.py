"""How pictures look: colours, the style of each variant, and text that is drawn as it stands."""

import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """Colours of a picture, as hex."""

    ink: str
    faint: str
    paper: str
    colours: tuple[str, ...]


# Six hues that stay apart (CIE Lab distance of 12 or more) under the three simulated kinds of
# colour blindness; from the seventh variant on they come again, with another line and marker.
LIGHT = Look(
    "#1c2128", "#8b939e", "#ffffff",
    ("#0072b2", "#d55e00", "#009e73", "#8e3b8c", "#d89b00", "#4ba3dc"),
)  # fmt: skip
DARK = Look(
    "#e3e7ec", "#7f8894", "#15181d",
    ("#4c9be8", "#f0803c", "#2cb58c", "#d68ac8", "#f2c14e", "#9ad7ff"),
)  # fmt: skip
LINES = ((), (4.5, 1.6), (4.5, 1.3, 1, 1.3), (1.8, 1.1))
"""On and off, in widths of the line: with six colours, 24 variants without a pair alike."""
REFERENCE = (3, 2)
"""Likewise, of what is no variant, and has no marker."""
MARKERS = "os^DvP<Xp*h>d"
"""In an order in which those that share a colour have different shapes. Thirteen: colour and
marker meet again after 78 variants."""
FONT = "DejaVu Sans"
"""Comes with matplotlib, so that every machine draws the same."""


def style_of(i: int | None, look: Look) -> dict[str, Any]:
    """Colour, marker and line of the variant at place i; None: of what variants are held against.

    Of the first 24, every pair differs in colour or line, and in colour or marker.
    """
    if i is None:
        return {"color": look.faint, "marker": "", "linestyle": (0, REFERENCE)}
    lap, hue = divmod(i, len(look.colours))
    dashes = LINES[lap % len(LINES)]
    return {
        "color": look.colours[hue],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": (0, dashes) if dashes else "-",
    }


@cache
def swatch(i: int | None) -> str:
    """A piece of the variant's curve as inline SVG, in its page's colours `--c0`, `--c1`, ...

    None: of what variants are held against.
    """
    from matplotlib.markers import MarkerStyle

    if i is None:
        return _piece("soft", REFERENCE, "")
    lap, hue = divmod(i, len(LIGHT.colours))
    marker = MarkerStyle(MARKERS[i % len(MARKERS)])
    outline = marker.get_path().transformed(marker.get_transform()).to_polygons()
    placed = (np.array([15, 5]) + np.array(shape, float) * [7, -7] for shape in outline)
    points = (" ".join(f"{x:.1f},{y:.1f}" for x, y in shape) for shape in placed)
    shapes = "".join(f'<polygon points="{p}"/>' for p in points)
    return _piece(f"c{hue}", LINES[lap % len(LINES)], shapes)


def _piece(colour: str, line: Sequence[float], shapes: str) -> str:
    width = 1.6
    dashes = " ".join(f"{width * x:.2f}" for x in line)
    return (
        f'<svg viewBox="0 0 30 10" style="color: var(--{colour})" aria-hidden="true">'
        f'<g fill="currentColor"><path d="M0 5H30" stroke="currentColor" stroke-width="{width}"'
        f' stroke-dasharray="{dashes}"/>{shapes}</g></svg>'
    )


def haze(strength: float, curves: int) -> float:
    """How opaque what lies behind the curves may be, so that many of them do not turn to mud."""
    return strength * min(1.0, 6 / max(1, curves)) ** 1.5


def render(
    draw: Callable[[Look, bool], "Figure"], look: Look, narrow: bool = False, kind: str = "png"
) -> bytes:
    """The picture as a file of the given kind, under a look of its own and no global style.

    Its texts are text: no `$` begins mathematics, and what no font of this machine has is a box.
    """
    import matplotlib

    style = {
        "font.family": [FONT],
        "font.size": 9.5,
        "text.parse_math": False,
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
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure = draw(look, narrow)
        _find_glyphs(figure)
        figure.savefig(buffer, format=kind, dpi=200, metadata=undated.get(kind))
    return buffer.getvalue()


def darkened(svg: str) -> str:
    """A picture drawn under LIGHT as it is under DARK: every colour has its counterpart."""
    pairs = {LIGHT.ink: DARK.ink, LIGHT.faint: DARK.faint, LIGHT.paper: DARK.paper}
    pairs |= dict(zip(LIGHT.colours, DARK.colours, strict=True))
    return re.sub("|".join(pairs), lambda found: pairs[found[0]], svg)


def _find_glyphs(figure: "Figure") -> None:
    """Give each text the fonts that its characters need; a box for what none has."""
    from matplotlib.text import Text

    # a picture knows left-to-right marks in place of isolates, which its font lacks
    marks = str.maketrans("\u2068\u2069", "\u200e\u200e")
    for text in figure.findobj(Text):
        if not isinstance(text, Text):
            continue
        said = text.get_text().translate(marks)
        fonts = [FONT]
        for c in sorted(set(said) - {"\n"}):
            family = _family_with(c)
            if family is None:
                said = said.replace(c, "" if unicodedata.category(c) == "Cf" else "▯")
            elif family not in fonts:
                fonts.append(family)
        text.set_text(said)
        text.set(family=fonts)


@cache
def _family_with(character: str) -> str | None:
    """A font family of this machine that can draw the character, FONT first."""
    from matplotlib.font_manager import fontManager

    if character in _characters(_file(FONT)):
        return FONT
    if unicodedata.category(character)[0] == "C":
        return None
    for font in sorted(fontManager.ttflist, key=lambda font: font.name):
        usual = (font.style, font.variant, font.weight) == ("normal", "normal", 400)
        fits = usual and not font.name.startswith("Last Resort")  # which has a box for each script
        if fits and character in _characters(font.fname):
            return font.name
    return None


def _file(family: str) -> str:
    from matplotlib.font_manager import findfont

    return str(findfont(family))


@cache
def _characters(file: str) -> frozenset[str]:
    """What a font file can draw; nothing where its letters are bitmaps, as those of some emoji."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):  # matplotlib remembers fonts that are gone
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
