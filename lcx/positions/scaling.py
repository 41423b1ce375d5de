"""Scalings of rotary frequencies: how a model reads on past the length of its training.

Each changes how fast the pairs of features turn; some also scale queries and keys. `factor` is the
new length over the old, `original` the old one: that of the training, not one that was extended
already. All are computed in float64 when a model is traced, but for what depends on the length of
the text at hand (`lcx.positions.dynamic`).
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

Length = int | Int[Array, "B T"]
"""How long the text of each token will become; an int: of all. 0: no longer than in training."""


@runtime_checkable
class Scaling(Protocol):
    """Changes a rotary scheme's frequencies, so that a longer context fits."""

    def inv_freq(
        self, theta: float, width: int, length: Length = 0
    ) -> Float[Array | np.ndarray, "*B P"]:
        """The scaled frequencies of `width` rotated features, in radians a token.

        float64 [P]; or, where they depend on a length that is an array, fp32 [B T P]. Raises
        ValueError where the scaling is made for another width.
        """
        ...

    def magnitude(self, length: Length = 0) -> Float[Array, "B T 1"] | float:
        """What rotated queries and keys are multiplied by; scores by its square."""
        ...


def base_inv_freq(theta: float, width: int) -> Float[np.ndarray, " P"]:
    """theta^(-2i / width) for i < width / 2: radians a token, float64 (Su et al. 2021)."""
    return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)


@dataclass(frozen=True)
class PositionInterpolation:
    """Position interpolation: position / factor, LongChat's condensed rotary embedding.

    A model trained at length L then sees no angle beyond its training up to factor * L; give the
    factor it was fine-tuned with, on short prompts too. Chen et al. 2023, equation 4; Li et al.
    2023 (LongChat).
    """

    factor: float

    def __post_init__(self):
        check_factor(self)

    def inv_freq(self, theta: float, width: int, length: Length = 0) -> Float[np.ndarray, " P"]:
        return base_inv_freq(theta, width) / self.factor

    def magnitude(self, length: Length = 0) -> float:
        return 1.0


@dataclass(frozen=True)
class NTK:
    """NTK-aware interpolation: theta becomes theta * factor^(K / (K - 2)) (bloc97 2023).

    The slowest pair slows down by the factor, the fastest not at all. The context that is gained
    is somewhat less than the factor says (Peng et al. 2023, section 3.1).
    """

    factor: float

    def __post_init__(self):
        check_factor(self)

    def inv_freq(self, theta: float, width: int, length: Length = 0) -> Float[np.ndarray, " P"]:
        slower = self.factor ** (-np.arange(0, width, 2, dtype=np.float64) / max(width - 2, 1))
        return base_inv_freq(theta, width) * slower

    def magnitude(self, length: Length = 0) -> float:
        return 1.0


@dataclass(frozen=True)
class YaRN:
    """Slow pairs are interpolated, fast ones kept, those between mixed; scores are sharpened.

    By the turns that a pair completes within `original` tokens: none of more than `beta_fast` is
    changed, all of fewer than `beta_slow` are slowed by the factor. The ramp between them is linear
    in the pair's index, as in the authors' code. Peng et al. 2023 (arXiv:2309.00071), definition 2.
    """

    factor: float
    original: int
    beta_fast: float = 32.0
    """The default was found at a length of 4,096; where that is shorter, try fewer turns."""
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """The magnitude; None: 0.1 ln(factor) + 1, equation 22."""
    truncate: bool = True
    """Round the ramp's ends outwards to whole pairs; GPT-OSS does not."""

    def __post_init__(self):
        check_factor(self)
        check_yarn(self)
        if self.attention_factor is not None and not 0 < self.attention_factor < math.inf:
            raise ValueError(
                f"YaRN: attention_factor must be positive, not {self.attention_factor}"
            )

    def magnitude(self, length: Length = 0) -> float:
        default = 0.1 * math.log(self.factor) + 1
        return default if self.attention_factor is None else self.attention_factor

    def inv_freq(self, theta: float, width: int, length: Length = 0) -> Float[np.ndarray, " P"]:
        slowed = yarn_ramp(self, theta, width)
        return base_inv_freq(theta, width) * (1 - slowed + slowed / self.factor)


def yarn_ramp(scaling: Any, theta: float, width: int) -> Float[np.ndarray, " P"]:
    """How far each pair is interpolated: 0 for fast ones to 1 for slow ones."""

    def pair_of(turns: float) -> float:
        """The index of the pair that completes so many turns."""
        return width * math.log(scaling.original / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:  # a step
        high += 0.001
    return np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's: as YaRN without the magnitude, and the ramp linear in turns (Meta 2024)."""

    factor: float
    original: int
    low: float = 1.0
    """Pairs that complete fewer turns within `original` tokens are slowed by the factor."""
    high: float = 4.0
    """Pairs that complete more are kept."""

    def __post_init__(self):
        check_factor(self)
        if not 0 < self.low < self.high:
            raise ValueError(
                f"Llama3: low must be positive and below high, not {self.low} and {self.high}"
            )
        check_original(self)

    def inv_freq(self, theta: float, width: int, length: Length = 0) -> Float[np.ndarray, " P"]:
        base = base_inv_freq(theta, width)
        turns = self.original * base / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return base * (kept + (1 - kept) / self.factor)

    def magnitude(self, length: Length = 0) -> float:
        return 1.0


def check_factor(scaling: Any) -> None:
    """Raise ValueError for a factor that would make texts shorter."""
    if not 1 <= scaling.factor < math.inf:
        raise ValueError(
            f"{type(scaling).__name__} scaling by {scaling.factor}: the factor must be at least 1"
        )


def check_original(scaling: Any) -> None:
    """Raise ValueError for a training of no length."""
    if scaling.original < 1:
        name = type(scaling).__name__
        raise ValueError(f"{name}: original must be at least 1, not {scaling.original}")


def check_yarn(scaling: Any) -> None:
    """What the two kinds of YaRN ask of their numbers."""
    name, fast, slow = type(scaling).__name__, scaling.beta_fast, scaling.beta_slow
    if not 0 < slow < fast < math.inf:
        raise ValueError(
            f"{name}: beta_slow must be positive and below beta_fast, not {slow} and {fast}"
        )
    if not scaling.original > 2 * math.pi * slow:
        raise ValueError(
            f"{name}: even the fastest pair turns less than {slow} times in an original length of "
            f"{scaling.original}"
        )
