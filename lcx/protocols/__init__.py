"""How models are measured: one file each, one line each in the table."""

from lcx.protocols.base import CONTEXTS, EvaluationProtocol, Excerpt, Score, Terms, Text
from lcx.protocols.by_position import ByPosition
from lcx.protocols.recall import Recall
from lcx.protocols.repetition import Repetition
from lcx.protocols.same_targets import SameTargets
from lcx.protocols.sliding import Sliding
from lcx.protocols.token_repetition import TokenRepetition

PROTOCOLS: dict[str, type] = {
    c.__name__: c for c in (SameTargets, Sliding, ByPosition, Recall, Repetition, TokenRepetition)
}

__all__ = [
    "CONTEXTS",
    "PROTOCOLS",
    "ByPosition",
    "EvaluationProtocol",
    "Excerpt",
    "Recall",
    "Repetition",
    "SameTargets",
    "Score",
    "Sliding",
    "Terms",
    "Text",
    "TokenRepetition",
]
