"""Only biases are trained."""

from dataclasses import dataclass

from lcx.adapters.protocol import TrainsOwn
from lcx.model import LM, parameters


@dataclass(frozen=True)
class BiasTuning(TrainsOwn):
    """BitFit: all biases are trained, those of projections, norms and others (Ben Zaken 2022)."""

    def trained(self, model: LM) -> frozenset[str]:
        names = {path: path.rpartition(".")[2] for path in parameters(model)}
        found = frozenset(p for p, n in names.items() if n == "bias" or n.endswith("_bias"))
        if not found:
            raise ValueError(
                "BiasTuning: the model has no bias; LayerNorm has one, and projections where their "
                "mixers are told so (SoftmaxAttention(biases=...), MLP(bias=True))"
            )
        return found
