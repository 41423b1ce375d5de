"""What training minimises: one file each, one line each in the table."""

from lcx.losses.contrastive import Contrastive
from lcx.losses.cross_entropy import CrossEntropy
from lcx.losses.protocol import Loss, LossSums
from lcx.losses.unlikelihood import Unlikelihood

LOSSES: dict[str, type] = {c.__name__: c for c in (CrossEntropy, Unlikelihood, Contrastive)}

__all__ = ["LOSSES", "Contrastive", "CrossEntropy", "Loss", "LossSums", "Unlikelihood"]
