"""Cross-entropy of the next token."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lcx.logits import OverLogits
from lcx.losses.protocol import LossSums, OfTokens
from lcx.parallel.seqpar import Shards
from lcx.protocols.measures import token_scores
from lcx.types import Batch


@dataclass(frozen=True)
class CrossEntropy(OfTokens):
    """Negative log-likelihood of the next token, in nats a scored token."""

    z: float = 0.0
    """Weight of log(Z)^2, which keeps the softmax's normaliser Z near 1 (PaLM, Chowdhery et al.
    2022, section 5). It is minimised, and not shown."""
    smoothing: float = 0.0
    """Share of each target's probability that is spread evenly over the vocabulary, the target
    among it (label smoothing, Szegedy et al. 2016, section 7). It is minimised; what is shown
    stays the likelihood of the target alone."""

    def __post_init__(self):
        if not self.z >= 0:
            raise ValueError(f"CrossEntropy: z cannot be negative, not {self.z}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"CrossEntropy: smoothing must be in [0, 1), not {self.smoothing}")

    def __call__(
        self,
        x: Float[Array, "B T D"],
        batch: Batch,
        over_logits: OverLogits,
        shards: Shards | None = None,
    ) -> LossSums:
        minimised, nll = over_logits(self._of_tokens, x, batch.targets)
        weights = batch.scored.astype(jnp.float32)
        return LossSums((minimised * weights).sum(), (nll * weights).sum())

    def _of_tokens(
        self, logits: Float[Array, "B t vocab"], targets: Int[Array, "B t"]
    ) -> tuple[Float[Array, "B t"], Float[Array, "B t"]]:
        """What is minimised of each token, and its negative log-likelihood."""
        nll, log_z, _ = token_scores(logits, targets)
        minimised = nll + self.z * jnp.square(log_z)
        if self.smoothing:
            of_all = log_z - logits.mean(axis=-1)  # the mean of every token's -log p
            minimised += self.smoothing * (of_all - nll)
        return minimised, nll
