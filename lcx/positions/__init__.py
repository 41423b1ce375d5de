"""Position schemes: how a mixer's queries and keys learn where they stand."""

from lcx.positions.rope import NoPE, PositionScheme, RoPE
from lcx.positions.scaling import NTK, Linear, Llama3, Scaling, YaRN

POSITIONS: dict[str, type] = {c.__name__: c for c in (RoPE, NoPE)}
SCALINGS: dict[str, type] = {c.__name__: c for c in (Linear, NTK, YaRN, Llama3)}

__all__ = [
    "NTK",
    "POSITIONS",
    "SCALINGS",
    "Linear",
    "Llama3",
    "NoPE",
    "PositionScheme",
    "RoPE",
    "Scaling",
    "YaRN",
]
