"""Which keys a query sees: one file each, one line each in the table."""

from lcx.sparsity.fixed import Fixed
from lcx.sparsity.full import Full
from lcx.sparsity.protocol import Attended, Request, Sparsity
from lcx.sparsity.self_extend import SelfExtend
from lcx.sparsity.shifted_groups import ShiftedGroups
from lcx.sparsity.strided import Strided
from lcx.sparsity.top_blocks import TopBlocks
from lcx.sparsity.window import Window

SPARSITIES: dict[str, type] = {
    c.__name__: c for c in (Full, Window, Strided, Fixed, ShiftedGroups, TopBlocks, SelfExtend)
}

__all__ = [
    "SPARSITIES",
    "Attended",
    "Fixed",
    "Full",
    "Request",
    "SelfExtend",
    "ShiftedGroups",
    "Sparsity",
    "Strided",
    "TopBlocks",
    "Window",
]
