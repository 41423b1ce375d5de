"""Direct preference optimisation: of two answers to one prompt, which is preferred."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lcx.logits import OverLogits
from lcx.losses.protocol import LossSums
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards
from lcx.protocols.measures import token_scores
from lcx.types import Batch


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    For pairs of a preferred answer w and a rejected one l to the same prompt, adjacent rows of a
    batch, as `Data(Pairs(...))` has them:

        -log sigmoid(beta [(log p(w) - log r(w)) - (log p(l) - log r(l))] - margin)

    log p is the sum of an answer's log-probabilities, log r the same under the reference: the
    parameters that training starts from (`init_from`), run by this model. These are computed once,
    before the first step, and kept in the run's folder.
    """

    beta: float = 0.1
    """How strongly what is learnt is held to the reference: the larger, the closer."""
    reference: bool = True
    """False: log r is 0, as in CPO (Xu et al. 2024) without its likelihood of preferred answers."""
    mean: bool = False
    """The mean over an answer's tokens in place of the sum. Without a reference that is SimPO (Meng
    et al. 2024, equation 6), whose beta is about 2 and whose margin is about 1."""
    margin: float = 0.0
    """By how much the preferred answer has to lead, in units of the sigmoid's argument."""

    def __post_init__(self):
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"DPO: beta must be positive, not {self.beta}")
        if not (self.margin >= 0 and math.isfinite(self.margin)):
            raise ValueError(f"DPO: margin cannot be negative, not {self.margin}")

    @property
    def unit(self) -> str:
        return "nats per pair"

    def divisor(self, batch: Batch) -> Float[Array, ""]:
        return jnp.float32(batch.tokens.shape[0] / 2)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        batch: Batch,
        over_logits: OverLogits,
        shards: Shards | None = None,
    ) -> LossSums:
        """Reports `preferred`, the share of pairs whose preferred answer leads, and `lead`, the
        mean by which it does: the sigmoid's argument without the margin."""
        gains = -over_logits(token_scores, x, batch.targets).nll
        if self.reference:
            if batch.reference is None:
                raise ValueError("DPO: a batch without the reference's log-probabilities")
            gains -= batch.reference  # of each token, so that small differences are summed
        counts = batch.scored.astype(jnp.float32)
        of_rows = seqpar.total((gains * counts).sum(axis=1), shards)
        if self.mean:
            of_rows /= seqpar.total(counts.sum(axis=1), shards)
        preferred, rejected = of_rows.reshape(-1, 2).T
        lead = self.beta * (preferred - rejected)
        # every shard knows the pairs whole, and gives its share of what is summed over shards
        ways = 1 if shards is None else shards.count
        loss = jax.nn.softplus(self.margin - lead).sum() / ways
        reports = {"preferred": (lead > 0).astype(jnp.float32), "lead": lead}
        return LossSums(loss, loss, {name: a.sum()[None] / ways for name, a in reports.items()})
