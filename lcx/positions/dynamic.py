"""Scalings that depend on how long the text at hand is: as trained while it is short enough.

The length is that of the whole text, given before its first token is read (`Context.lengths`), so
that all of its tokens turn at one speed: keys that were rotated and cached stay right, and a text
in pieces is read as in one. It follows that a text which is to grow is read from the start as the
long one that it will be: the frequencies do not change in its midst.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lcx.positions.scaling import (
    Length,
    base_inv_freq,
    check_factor,
    check_original,
    check_yarn,
    yarn_ramp,
)


def _array_module(length: Length) -> Any:
    return jnp if isinstance(length, jax.Array) else np


def _stretch(length: Length, original: int) -> Float[Array | np.ndarray, "*B 1"]:
    """By how much a text is longer than `original`; 1 if it is not."""
    stretch = _array_module(length).maximum(length / original, 1.0)
    return stretch[..., None]


@dataclass(frozen=True)
class DynamicNTK:
    """`NTK` by the factor of each text: factor n / original - (factor - 1), of n > original tokens.

    emozilla 2023; Peng et al. 2023, section 3.3; transformers' "dynamic", whose `original` is
    max_position_embeddings. With the factor of 1, n / original.
    """

    original: int
    factor: float = 1.0

    def __post_init__(self):
        check_factor(self)
        check_original(self)

    def inv_freq(
        self, theta: float, width: int, length: Length = 0
    ) -> Float[Array | np.ndarray, "*B P"]:
        factor = self.factor * _stretch(length, self.original) - (self.factor - 1)
        slower = factor ** (-np.arange(0, width, 2) / max(width - 2, 1))
        return base_inv_freq(theta, width) * slower

    def magnitude(self, length: Length = 0) -> float:
        return 1.0


@dataclass(frozen=True)
class DynamicYaRN:
    """`YaRN` by the factor of each text: n / original, of n > original tokens.

    Peng et al. 2023 (arXiv:2309.00071), section 3.3. The magnitude follows the length, too.
    """

    original: int
    beta_fast: float = 32.0
    """The default was found at a length of 4,096; where that is shorter, try fewer turns."""
    beta_slow: float = 1.0
    truncate: bool = True
    """Round the ramp's ends outwards to whole pairs."""

    def __post_init__(self):
        check_yarn(self)

    def inv_freq(
        self, theta: float, width: int, length: Length = 0
    ) -> Float[Array | np.ndarray, "*B P"]:
        slowed = yarn_ramp(self, theta, width)
        factor = _stretch(length, self.original)
        return base_inv_freq(theta, width) * (1 - slowed + slowed / factor)

    def magnitude(self, length: Length = 0) -> Float[Array, "B T 1"] | float:
        stretch = _stretch(length, self.original)
        magnitude = 0.1 * _array_module(length).log(stretch) + 1
        return magnitude if isinstance(length, jax.Array) else float(magnitude[0])


@dataclass(frozen=True)
class LongRoPE:
    """A factor for each pair, found by search: one list for short texts, one for long ones.

    Ding et al. 2024 (arXiv:2402.13753); Phi-3. A text of more than `original` tokens is long. The
    magnitude is one and the same for both, so that short texts need the fine-tuned weights, too.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    """What each pair is slowed by; as many as pairs that turn."""
    original: int
    factor: float
    """The longest text over `original`; it tells the magnitude alone."""
    attention_factor: float | None = None
    """The magnitude; None: sqrt(1 + ln(factor) / ln(original))."""

    def __post_init__(self):
        check_factor(self)
        if self.original < 2:
            raise ValueError(f"LongRoPE: original must be at least 2, not {self.original}")
        for name in ("short", "long"):
            if not all(0 < f < math.inf for f in getattr(self, name)):
                raise ValueError(f"LongRoPE: the factors of {name} must all be positive")
        if self.attention_factor is not None and not 0 < self.attention_factor < math.inf:
            raise ValueError(
                f"LongRoPE: attention_factor must be positive, not {self.attention_factor}"
            )

    def inv_freq(
        self, theta: float, width: int, length: Length = 0
    ) -> Float[Array | np.ndarray, "*B P"]:
        for name in ("short", "long"):
            if (count := len(getattr(self, name))) != width // 2:
                raise ValueError(
                    f"LongRoPE: {count} factors in {name}, for {width // 2} pairs of {width} "
                    "features that turn"
                )
        base, lists = base_inv_freq(theta, width), (self.long, self.short)
        long, short = (base / np.array(factors) for factors in lists)
        module = _array_module(length)
        return module.where(_stretch(length, self.original) > 1, long, short)

    def magnitude(self, length: Length = 0) -> float:
        default = math.sqrt(1 + math.log(self.factor) / math.log(self.original))
        return default if self.attention_factor is None else self.attention_factor
