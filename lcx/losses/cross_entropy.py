"""Cross-entropy of the next token."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from lcx.logits import OverLogits
from lcx.losses.protocol import LossSums
from lcx.parallel.seqpar import Shards
from lcx.protocols.measures import token_scores
from lcx.types import Batch


@dataclass(frozen=True)
class CrossEntropy:
    """Negative log-likelihood of the next token, in nats a scored token."""

    z: float = 0.0
    """Weight of log(Z)^2, which keeps the softmax's normaliser Z near 1 (PaLM, Chowdhery et al.
    2022, section 5). It is minimised, and not shown."""

    def __post_init__(self):
        if self.z < 0:
            raise ValueError(f"CrossEntropy: z cannot be negative, not {self.z}")

    @property
    def unit(self) -> str:
        return "nats per token"

    def divisor(self, batch: Batch) -> Float[Array, ""]:
        return batch.scored.sum().astype(jnp.float32)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        batch: Batch,
        over_logits: OverLogits,
        shards: Shards | None = None,
    ) -> LossSums:
        scores = over_logits(token_scores, x, batch.targets)
        weights = batch.scored.astype(jnp.float32)
        nll = (scores.nll * weights).sum()
        return LossSums(nll + self.z * (jnp.square(scores.log_z) * weights).sum(), nll)
