"""What training minimises: one file each, one line each in the table."""

from lcx.losses.cross_entropy import CrossEntropy
from lcx.losses.dpo import DPO
from lcx.losses.protocol import Loss, LossSums, OfPairs, needs_reference

LOSSES: dict[str, type] = {c.__name__: c for c in (CrossEntropy, DPO)}

__all__ = ["DPO", "LOSSES", "CrossEntropy", "Loss", "LossSums", "OfPairs", "needs_reference"]
