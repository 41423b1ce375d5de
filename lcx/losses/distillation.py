"""Distillation: a model learns what a trained one thinks of every next token."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lcx.huggingface import Pretrained
from lcx.logits import OverLogits
from lcx.losses.cross_entropy import CrossEntropy
from lcx.losses.protocol import Loss, LossSums, OfTokens
from lcx.parallel.seqpar import Shards
from lcx.protocols.measures import token_scores
from lcx.types import Batch


@dataclass(frozen=True)
class Distillation(OfTokens):
    """Cross-entropy, and divergence from a teacher's probabilities of the next token.

    Hinton et al. 2015 (arXiv:1503.02531), section 2. Of each scored token, with the student's
    logits z and the teacher's v, of the same tokens at the same positions:

        (1 - weight) -log softmax(z)[target]
            + weight temperature^2 KL(softmax(v / temperature) || softmax(z / temperature))

    temperature^2 keeps the share of both parts in the gradient, whatever the temperature. The
    teacher is frozen: it has no gradient, no moments and no place in checkpoints. A step takes its
    forward pass besides, and room for its parameters.
    """

    teacher: str | Pretrained
    """The variant, trained before this one, or the published model that is asked. It has the same
    vocabulary and tokenizer, and any mixers, positions and size. Run i learns from the teacher's
    run i, or from its only one."""
    temperature: float = 2.0
    """What both models' logits are divided by: the higher, the more unlikely tokens count."""
    weight: float = 0.5
    """Share of the divergence. It is minimised; what is shown is the likelihood of the target."""

    def __post_init__(self):
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"Distillation: temperature must be positive, not {self.temperature}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"Distillation: weight must be in [0, 1], not {self.weight}")

    @property
    def alone(self) -> Loss:
        return CrossEntropy()

    def __call__(
        self,
        x: Float[Array, "B T D"],
        batch: Batch,
        over_logits: OverLogits,
        shards: Shards | None = None,
    ) -> LossSums:
        """Reports `divergence`, in nats per token, without its weight and temperature^2."""
        nll, divergence = over_logits(self._of_tokens, x, batch.targets)
        weights = batch.scored.astype(jnp.float32)
        nll, divergence = (nll * weights).sum(), (divergence * weights).sum()
        minimised = (1 - self.weight) * nll + self.weight * self.temperature**2 * divergence
        return LossSums(minimised, nll, {"divergence": divergence[None]})

    def _of_tokens(
        self,
        logits: Float[Array, "B t vocab"],
        taught: Float[Array, "B t vocab"],
        targets: Int[Array, "B t"],
    ) -> tuple[Float[Array, "B t"], Float[Array, "B t"]]:
        """Negative log-likelihood of each target, and the divergence from the teacher there."""
        log_p, log_q = (jax.nn.log_softmax(z / self.temperature) for z in (taught, logits))
        divergence = (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        return token_scores(logits, targets).nll, divergence
