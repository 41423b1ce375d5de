"""Rotary position embedding, its scalings, and its absence."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

from lcx.ops import rotary


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


@runtime_checkable
class Scaling(Protocol):
    """Changes a rotary scheme's frequencies, so that a longer context fits."""

    def inv_freq(self, theta: float, width: int) -> Float[np.ndarray, " P"]:
        """The scaled frequencies, in radians a token, float64."""
        ...


def base_inv_freq(theta: float, width: int) -> Float[np.ndarray, " P"]:
    """theta^(-2i / width) for i < width / 2: radians a token, float64 (Su et al. 2021)."""
    return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)


@dataclass(frozen=True)
class Linear:
    """Position interpolation: position / factor, LongChat's condensed rotary embedding.

    A model trained at length L then sees no angle beyond its training up to factor * L; give the
    factor it was fine-tuned with, on short prompts too. Chen et al. 2023, equation 4; Li et al.
    2023 (LongChat).
    """

    factor: float

    def __post_init__(self):
        if not 1 <= self.factor < float("inf"):
            raise ValueError(f"Linear scaling by {self.factor}: the factor must be at least 1")

    def inv_freq(self, theta: float, width: int) -> Float[np.ndarray, " P"]:
        return base_inv_freq(theta, width) / self.factor


@dataclass(frozen=True)
class RoPE:
    """Rotary embedding: rotates feature pairs by position * theta^(-2i/K), optionally scaled.

    Su et al. 2021, equation 34. Layout: half-split, as in Llama.
    """

    theta: float = 10_000.0
    scaling: Scaling | None = None

    def __post_init__(self):
        if not self.theta > 1:
            raise ValueError(f"RoPE: theta must be greater than 1, not {self.theta}")

    def check(self, width: int) -> None:
        if width % 2:
            raise ValueError(f"RoPE rotates pairs of features: heads of {width} are odd")

    def __call__(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B T G K"],
        positions: Int[Array, "B T"],
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]:
        width = q.shape[-1]
        if self.scaling is None:
            inv_freq = base_inv_freq(self.theta, width)
        else:
            inv_freq = self.scaling.inv_freq(self.theta, width)
        angle = rotary.angles(positions, inv_freq)
        return rotary.rotate(q, angle), rotary.rotate(k, angle)


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
