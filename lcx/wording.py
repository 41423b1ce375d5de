"""Numbers as a reader sees them: short, and the same on the page, in pictures and in a terminal."""

import math
import unicodedata
from collections.abc import Sequence


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


def short_count(n: float) -> str:
    """512, 8.2k, 734k, 1.3M, 70B: in powers of 1000, three figures."""
    units = ("", "k", "M", "B", "T")
    power = next((i for i in range(len(units)) if n < 999.5 * 1000**i), len(units) - 1)
    return f"{n / 1000**power:.3g}{units[power]}"


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


def ratio(x: float | None) -> str:
    """Three decimals where these say something: 0.987, 1.004; otherwise as `short_number`."""
    x = or_nan(x)
    return f"{x:.3f}" if 0.01 <= abs(x) < 10 or x == 0 else short_number(x)


def signed(x: float | None) -> str:
    """A difference: +0.012, −0.300."""
    x = or_nan(x)
    return f"{x:+.3f}".replace("-", "−") if math.isfinite(x) else short_number(x)


def plural(n: int, noun: str) -> str:
    """1 seed, 2 seeds, 8,192 tokens."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(names: list[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def side_by_side(widths: Sequence[int], room: int) -> list[slice]:
    """Which columns of a table stand together, as many as fit in so many characters, in order.

    The others go into further tables below it. Each has one at least.
    """
    groups: list[slice] = []
    first, left = 0, room
    for at, width in enumerate(widths):
        if width > left and at > first:
            groups.append(slice(first, at))
            first, left = at, room
        left -= width
    return [*groups, slice(first, len(widths))] if widths else []


def isolated(name: str) -> str:
    """A name within a sentence; one written from right to left leaves the words around in order."""
    rightward = any(unicodedata.bidirectional(c) in ("R", "AL") for c in name)
    return f"\u2068{name}\u2069" if rightward else name
