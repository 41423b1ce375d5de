"""Attention with linear biases."""

import math
from dataclasses import dataclass

from jaxtyping import Array, Float

from lcx.positions.protocol import PositionScheme
from lcx.types import Context


@dataclass(frozen=True)
class ALiBi(PositionScheme):
    """Scores fall with the distance, by a slope of each head's own; q and k stay as they are.

    Press et al. 2022 (arXiv:2108.12409). Of H = 2^n heads, head h = 1 .. H has the slope
    2^(-bias_max h / H); for other H, as the authors' code has it, those of the next smaller power
    of two, and then every second one of the next larger.
    """

    bias_max: float = 8.0
    """The gentlest slope is 2 to the minus this (MPT: alibi_bias_max)."""
    scale: float = 1.0
    """Factor of all slopes. Falcon, which scales scores after the bias: K ** -0.5."""

    def __post_init__(self):
        for name in ("bias_max", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"ALiBi: {name} must be positive, not {getattr(self, name)}")

    def check(self, width: int) -> None:
        pass

    def __call__(
        self, q: Float[Array, "B T H K"], k: Float[Array, "B T G K"], ctx: Context
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]:
        return q, k

    def slopes(self, heads: int) -> tuple[float, ...]:
        def of(power: int) -> list[float]:
            return [2 ** (-self.bias_max * h / power) for h in range(1, power + 1)]

        power = 2 ** math.floor(math.log2(heads))
        slopes = of(power) + of(2 * power)[::2][: heads - power]
        return tuple(self.scale * slope for slope in slopes)
