"""How texts repeat themselves and each other: measures, a guard that sees loops, filters.

Over token ids, or over words; nothing here knows a model.
"""

from lcx.repetition.loops import RepetitionGuard, Resample, Separate, StopThere

GUARDS: dict[str, type] = {c.__name__: c for c in (RepetitionGuard, StopThere, Resample, Separate)}

__all__ = ["GUARDS", "RepetitionGuard", "Resample", "Separate", "StopThere"]
