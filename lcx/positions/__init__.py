"""Position schemes: how a mixer's queries and keys learn where they stand."""

from lcx.positions.alibi import ALiBi
from lcx.positions.dynamic import DynamicNTK, DynamicYaRN, LongRoPE
from lcx.positions.learned import Learned
from lcx.positions.none import NoPE
from lcx.positions.protocol import PositionScheme, only_marks
from lcx.positions.rope import RoPE
from lcx.positions.scaling import NTK, Linear, Llama3, Scaling, YaRN
from lcx.positions.training import TRAINING_POSITIONS, PoSE, Randomised, TrainingPositions
from lcx.positions.xpos import XPos

POSITIONS: dict[str, type] = {c.__name__: c for c in (RoPE, NoPE, ALiBi, XPos)}
SCALINGS: dict[str, type] = {
    c.__name__: c for c in (Linear, NTK, YaRN, Llama3, DynamicNTK, DynamicYaRN, LongRoPE)
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
    "Linear",
    "Llama3",
    "LongRoPE",
    "NoPE",
    "PoSE",
    "PositionScheme",
    "Randomised",
    "RoPE",
    "Scaling",
    "TrainingPositions",
    "XPos",
    "YaRN",
    "only_marks",
]
