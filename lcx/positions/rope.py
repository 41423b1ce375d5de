"""Rotary position embedding."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from lcx.ops import rotary
from lcx.positions.protocol import PositionScheme
from lcx.positions.scaling import Length, Scaling, base_inv_freq
from lcx.types import Context


@dataclass(frozen=True)
class RoPE(PositionScheme):
    """Rotary embedding: rotates feature pairs by position * theta^(-2i/K), optionally scaled.

    Su et al. 2021, equation 34.
    """

    theta: float = 10_000.0
    scaling: Scaling | None = None
    fraction: float = 1.0
    """Only the first part of each head's features turns (GPT-NeoX: 0.25); K counts these alone."""
    interleaved: bool = False
    """Neighbours are pairs (the paper, GPT-J), where Llama pairs feature i with i + K/2."""

    def __post_init__(self):
        if not 1 < self.theta < math.inf:
            raise ValueError(f"RoPE: theta must be finite and greater than 1, not {self.theta}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"RoPE: fraction must lie in (0, 1], not {self.fraction}")

    def rotary_width(self, width: int) -> int:
        """How many of a head's features rotate."""
        return int(self.fraction * width)

    def check(self, width: int) -> None:
        rotated = self.rotary_width(width)
        if rotated < 2 or rotated % 2:
            part = "" if self.fraction == 1 else f", of which {self.fraction} is {rotated},"
            raise ValueError(f"RoPE rotates pairs of features: heads of {width}{part} are odd")
        self.frequencies(rotated, 0)

    def frequencies(
        self, width: int, length: Length
    ) -> tuple[Float[Array | np.ndarray, "*B P"], Float[Array, "B T 1"] | float]:
        """How fast each pair of `width` rotary features rotates, and the magnitude.

        `length` is that of the text, for a scaling that depends on it; see `Scaling`.
        """
        if self.scaling is None:
            return base_inv_freq(self.theta, width), 1.0
        return self.scaling.inv_freq(self.theta, width, length), self.scaling.magnitude(length)

    def __call__(
        self, q: Float[Array, "B T H K"], k: Float[Array, "B T G K"], ctx: Context
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]:
        rotated = self.rotary_width(q.shape[-1])
        length = 0 if ctx.lengths is None else ctx.lengths
        inv_freq, magnitude = self.frequencies(rotated, length)
        angle = rotary.angles(ctx.positions, inv_freq)
        q, k = (rotary.rotate(x, angle, magnitude, self.interleaved) for x in (q, k))
        return q, k
