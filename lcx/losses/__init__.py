"""What training minimises: one file each, one line each in the table."""

from lcx.losses.contrastive import Contrastive
from lcx.losses.cross_entropy import CrossEntropy
from lcx.losses.dpo import DPO
from lcx.losses.protocol import Loss, LossSums, OfPairs, OfWritten, needs_reference
from lcx.losses.sequence_unlikelihood import SequenceUnlikelihood
from lcx.losses.unlikelihood import Unlikelihood

LOSSES: dict[str, type] = {
    c.__name__: c for c in (CrossEntropy, Unlikelihood, SequenceUnlikelihood, Contrastive, DPO)
}

__all__ = [
    "DPO",
    "LOSSES",
    "Contrastive",
    "CrossEntropy",
    "Loss",
    "LossSums",
    "OfPairs",
    "OfWritten",
    "SequenceUnlikelihood",
    "Unlikelihood",
    "needs_reference",
]
