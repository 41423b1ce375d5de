"""No position at all."""

from dataclasses import dataclass

from jaxtyping import Array, Float

from lcx.positions.protocol import PositionScheme
from lcx.types import Context


@dataclass(frozen=True)
class NoPE(PositionScheme):
    """No position at all: only the causal mask tells the order (Kazemnejad et al. 2023)."""

    def check(self, width: int) -> None:
        pass

    def __call__(
        self, q: Float[Array, "B T H K"], k: Float[Array, "B T G K"], ctx: Context
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]:
        return q, k
