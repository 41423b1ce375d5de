"""Rotary position embedding, and its absence."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from lcx.ops import rotary
from lcx.positions.scaling import Scaling, base_inv_freq


@runtime_checkable
class PositionScheme(Protocol):
    """Marks queries and keys with their positions before they meet."""

    def check(self, width: int) -> None:
        """Raise ValueError where heads of `width` features cannot carry this scheme."""
        ...

    def __call__(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B T G K"],
        positions: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]: ...


@dataclass(frozen=True)
class RoPE:
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
        if not self.theta > 1:
            raise ValueError(f"RoPE: theta must be greater than 1, not {self.theta}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"RoPE: fraction must lie in (0, 1], not {self.fraction}")

    def check(self, width: int) -> None:
        turning = int(self.fraction * width)
        if turning < 2 or turning % 2:
            part = "" if self.fraction == 1 else f", of which {self.fraction} is {turning},"
            raise ValueError(f"RoPE rotates pairs of features: heads of {width}{part} are odd")

    def __call__(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B T G K"],
        positions: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]:
        turning = int(self.fraction * q.shape[-1])
        if self.scaling is None:
            inv_freq, magnitude = base_inv_freq(self.theta, turning), 1.0
        else:
            inv_freq, magnitude = self.scaling.inv_freq(self.theta, turning), self.scaling.magnitude
        angle = rotary.angles(positions, inv_freq)
        q, k = (rotary.rotate(x, angle, magnitude, self.interleaved) for x in (q, k))
        return q, k


@dataclass(frozen=True)
class NoPE:
    """No position at all: only the causal mask tells the order (Kazemnejad et al. 2023)."""

    def check(self, width: int) -> None:
        pass

    def __call__(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B T G K"],
        positions: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]:
        return q, k
