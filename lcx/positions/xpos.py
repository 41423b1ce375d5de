"""Rotary embedding whose products decay."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from lcx.ops import rotary
from lcx.positions.protocol import PositionScheme
from lcx.positions.scaling import base_inv_freq
from lcx.types import Context


@dataclass(frozen=True)
class XPos(PositionScheme):
    """RoPE, and the product of each pair of features decays with the distance: fast pairs more.

    Sun et al. 2022 (arXiv:2212.10554), equation 11: by zeta_i^(1 / scale_base) a token, where
    zeta_i = (2i/K + gamma) / (1 + gamma). Pairs are neighbours, as in the authors' code. The decay
    counts tokens; the rotation positions, which in training may skip some.
    """

    theta: float = 10_000.0
    gamma: float = 0.4
    scale_base: float = 512.0

    def __post_init__(self):
        if not 1 < self.theta < math.inf:
            raise ValueError(f"XPos: theta must be finite and greater than 1, not {self.theta}")
        for name in ("gamma", "scale_base"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"XPos: {name} must be positive, not {getattr(self, name)}")

    def check(self, width: int) -> None:
        if width % 2:
            raise ValueError(f"XPos rotates pairs of features: heads of {width} are odd")

    def __call__(
        self, q: Float[Array, "B T H K"], k: Float[Array, "B T G K"], ctx: Context
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"]]:
        angle = rotary.angles(ctx.positions, base_inv_freq(self.theta, q.shape[-1]))
        return rotary.rotate(q, angle, interleaved=True), rotary.rotate(k, angle, interleaved=True)

    def decay(self, width: int) -> Float[np.ndarray, " K"]:
        zeta = (np.arange(0, width, 2) / width + self.gamma) / (1 + self.gamma)
        return np.repeat(np.log(zeta) / self.scale_base, 2)
