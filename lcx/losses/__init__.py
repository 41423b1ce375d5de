"""What training minimises: one file each, one line each in the table."""

from lcx.losses.contrastive import Contrastive
from lcx.losses.cross_entropy import CrossEntropy
from lcx.losses.distillation import Distillation
from lcx.losses.dpo import DPO
from lcx.losses.protocol import (
    Loss,
    LossSums,
    OfPairs,
    OfTeacher,
    OfWritten,
    needs_reference,
)
from lcx.losses.sequence_unlikelihood import SequenceUnlikelihood
from lcx.losses.teacher import Teacher
from lcx.losses.unlikelihood import Unlikelihood

LOSSES: dict[str, type] = {
    c.__name__: c
    for c in (CrossEntropy, Unlikelihood, SequenceUnlikelihood, Contrastive, Distillation, DPO)
}

__all__ = [
    "DPO",
    "LOSSES",
    "Contrastive",
    "CrossEntropy",
    "Distillation",
    "Loss",
    "LossSums",
    "OfPairs",
    "OfTeacher",
    "OfWritten",
    "SequenceUnlikelihood",
    "Teacher",
    "Unlikelihood",
    "needs_reference",
]
