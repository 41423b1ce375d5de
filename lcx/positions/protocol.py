"""What a position scheme is to the mixer that calls it."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float

from lcx.types import Context


@runtime_checkable
class PositionScheme(Protocol):
    """How queries and keys learn where they stand: encoded in them, or as terms of their scores.

    A scheme that only encodes them in queries and keys serves every mixer that takes a position.
    One that also has slopes or decays needs softmax scores, and a sparsity that knows how far apart
    tokens stand.
    """

    def check(self, width: int) -> None:
        """Raise ValueError where heads of `width` features cannot carry this scheme."""
        ...

    def __call__(
        self, q: Float[Array, "B T H K"], k: Float[Array, "B T G K"], ctx: Context
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]:
        """Queries and keys with `ctx.positions` encoded, before they meet."""
        ...

    def slopes(self, heads: int) -> tuple[float, ...] | None:
        """What a token of distance takes from each head's scores (`lcx.ops.attention.Bias`)."""
        return None

    def decay(self, width: int) -> Float[np.ndarray, " K"] | None:
        """Log-decays of each feature's product by a token of distance (`attention`)."""
        return None


def encodes_only(name: str, position: PositionScheme) -> None:
    """Raise ValueError where a scheme adds to scores that the caller, called `name`, does not make.

    What it needs is given by the methods of `PositionScheme`.
    """
    if position.slopes(1) is not None or position.decay(2) is not None:
        raise ValueError(
            f"{name} cannot carry {type(position).__name__}, which changes the scores of softmax "
            "attention; RoPE and NoPE fit"
        )
