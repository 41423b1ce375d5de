"""Position schemes: how a mixer's queries and keys learn where they stand."""

from lcx.positions.alibi import ALiBi
from lcx.positions.dynamic import DynamicNTK, DynamicYaRN, LongRoPE
from lcx.positions.learned import Learned
from lcx.positions.none import NoPE
from lcx.positions.protocol import PositionScheme, encodes_only
from lcx.positions.rope import RoPE
from lcx.positions.scaling import NTK, Llama3, PositionInterpolation, Scaling, YaRN
from lcx.positions.training import TRAINING_POSITIONS, PoSE, Randomised, TrainingPositions
from lcx.positions.xpos import XPos

POSITIONS: dict[str, type] = {c.__name__: c for c in (RoPE, NoPE, ALiBi, XPos)}
SCALINGS: dict[str, type] = {
    c.__name__: c
    for c in (PositionInterpolation, NTK, YaRN, Llama3, DynamicNTK, DynamicYaRN, LongRoPE)
}

__all__ = [
    "NTK",
    "POSITIONS",
    "SCALINGS",
    "TRAINING_POSITIONS",
    "ALiBi",
    "DynamicNTK",
    "DynamicYaRN",
    "Learned",
    "Llama3",
    "LongRoPE",
    "NoPE",
    "PoSE",
    "PositionInterpolation",
    "PositionScheme",
    "Randomised",
    "RoPE",
    "Scaling",
    "TrainingPositions",
    "XPos",
    "YaRN",
    "encodes_only",
]
