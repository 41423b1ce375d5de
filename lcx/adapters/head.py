"""Only the head is trained."""

from dataclasses import dataclass

from lcx.adapters.protocol import TrainsOwn
from lcx.model import LM


@dataclass(frozen=True)
class HeadTuning(TrainsOwn):
    """Head tuning: the head alone is trained, what it reads is the base's.

    Of a tied model it is the embedding that is trained, which is both.
    """

    def trained(self, model: LM) -> frozenset[str]:
        return frozenset({"embed.embedding" if model.tied else "head.kernel"})
