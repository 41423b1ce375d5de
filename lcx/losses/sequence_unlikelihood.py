"""Unlikelihood of what a model repeats in the text that it writes."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lcx.logits import OverLogits, over_logits
from lcx.losses.cross_entropy import CrossEntropy
from lcx.losses.protocol import Loss, LossSums, OfTeacher
from lcx.losses.unlikelihood import log_one_minus_p
from lcx.model import LM
from lcx.ops.documents import beginnings
from lcx.parallel.seqpar import Shards
from lcx.types import Batch, Params


class Prompts(NamedTuple):
    """What is written after, as `Batch` has it; P tokens each."""

    tokens: Int[Array, "B P"]
    positions: Int[Array, "B P"]
    segments: Int[Array, "B P"]


@dataclass(frozen=True)
class SequenceUnlikelihood:
    """Another loss, and in some steps unlikelihood of what the model repeats in its own text.

    Welleck et al. 2019 (arXiv:1908.04319), section 5.2: the model writes greedily after pieces of
    the batch, and of every token of an n-gram that stands in the same continuation before,
    -alpha log(1 - p) is minimised, on average over all that was written. Rows are averaged by
    their scored tokens. log(1 - p) is exact, without a clamp. No gradient flows into the choice
    of tokens.
    """

    beside: Loss = CrossEntropy()
    """What every step minimises, and what is shown."""
    alpha: float = 1.0
    rate: float = 0.5
    """Share of the steps in which the model writes."""
    prefix: int = 50
    """Tokens that each continuation follows."""
    new: int = 100
    """Tokens of each continuation."""
    per_row: int = 1
    """Continuations of each row, after pieces of it that begin at even distances."""
    n: int = 4
    """Tokens of the n-grams."""

    def __post_init__(self):
        if isinstance(self.beside, SequenceUnlikelihood):
            raise ValueError("SequenceUnlikelihood: beside is one itself; take a loss of tokens")
        if isinstance(self.beside, OfTeacher):
            raise ValueError(
                f"SequenceUnlikelihood: beside cannot have a teacher: {type(self.beside).__name__}"
            )
        if not self.alpha >= 0:
            raise ValueError(f"SequenceUnlikelihood: alpha cannot be negative, not {self.alpha}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"SequenceUnlikelihood: rate must be in [0, 1], not {self.rate}")
        for name in ("prefix", "per_row", "n"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"SequenceUnlikelihood: {name} must be at least 1, not {getattr(self, name)}"
                )
        if self.new <= self.n:
            raise ValueError(
                f"SequenceUnlikelihood: of {self.new} new tokens no n-gram of {self.n} can repeat"
            )

    def check(self, length: int) -> None:
        """Raise ValueError where rows of so many tokens do not have the prefixes."""
        if self.prefix * self.per_row > length:
            raise ValueError(
                f"{self.per_row} x {self.prefix} tokens to write after do not fit in a row of "
                f"{length}; lower per_row or prefix"
            )
        if self.prefix + self.new > length:
            raise ValueError(
                f"{self.prefix} tokens and {self.new} new ones are a longer text than training's "
                f"rows of {length}; lower prefix or new"
            )

    @property
    def unit(self) -> str:
        return self.beside.unit

    def divisor(self, batch: Batch) -> Float[Array, ""]:
        return self.beside.divisor(batch)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        batch: Batch,
        over_logits: OverLogits,
        shards: Shards | None = None,
    ) -> LossSums:
        return self.beside(x, batch, over_logits, shards)

    def of_written(self, model: LM, params: Params, batch: Batch) -> Float[Array, ""]:
        prompts = self._prompts(batch)
        written = greedy(model, lax.stop_gradient(params), prompts, self.new)
        unlikely = _repeats_unlikely(model, params, prompts, written, self.n).sum(axis=-1)
        # what follows padding is no text
        counts = (prompts.segments[:, -1] > 0).reshape(-1, self.per_row)
        each = jnp.where(counts, unlikely.reshape(counts.shape), 0.0).sum(axis=1)
        tokens = jnp.maximum(counts.sum(axis=1) * self.new, 1)
        return self.alpha * (batch.scored.sum(axis=1) * each / tokens).sum()

    def _prompts(self, batch: Batch) -> Prompts:
        """Pieces of a batch, as rows of their own, whose documents begin at position 0."""
        start = jnp.arange(self.per_row) * (batch.tokens.shape[1] // self.per_row)
        at = (start[:, None] + jnp.arange(self.prefix)).reshape(-1)
        segments = batch.real.astype(jnp.int32) if batch.segments is None else batch.segments
        tokens, segments = (a[:, at].reshape(-1, self.prefix) for a in (batch.tokens, segments))
        positions = jnp.arange(self.prefix, dtype=jnp.int32) - beginnings(segments)
        return Prompts(tokens, positions, segments)


def greedy(model: LM, params: Params, prompts: Prompts, new: int) -> Int[Array, "B new"]:
    """The `new` likeliest tokens after each row, one after the other. Pure."""
    state = model.init_state(len(prompts.tokens), prompts.tokens.shape[1] + new)
    out = model.hidden(params, Batch(*prompts), state)
    segment, per_token = prompts.segments[:, -1:], model.per_token(params)

    def step(carry, _: None):
        x, state = carry
        token = model.logits(params, x, per_token).argmax(axis=-1).astype(jnp.int32)
        after = model.hidden(
            params, Batch(token[:, None], segments=segment), state, per_token=per_token
        )
        return (after.x[:, 0], after.state), token

    _, tokens = lax.scan(step, (out.x[:, -1], out.state), None, length=new)
    return tokens.T


def _repeats_unlikely(
    model: LM, params: Params, prompts: Prompts, written: Int[Array, "B new"], n: int
) -> Float[Array, "B new"]:
    """-log(1 - p) of each token that is part of a repeated n-gram; 0 of others.

    The whole text is read at once, as in training.
    """

    begin, new = prompts.tokens.shape[1] - 1, written.shape[1]
    after = Prompts(
        written,
        prompts.positions[:, -1:] + 1 + jnp.arange(new, dtype=jnp.int32),
        jnp.broadcast_to(prompts.segments[:, -1:], written.shape),
    )
    # nothing follows the last token
    text = Batch(*(jnp.concatenate([a, b[:, :-1]], 1) for a, b in zip(prompts, after, strict=True)))
    lengths = jnp.full(text.tokens.shape, begin + 1 + new, jnp.int32)  # as it had when written
    x = model.hidden(params, text._replace(lengths=lengths)).x[:, begin:]

    def unlikely(logits: Float[Array, "B t vocab"], tokens: Int[Array, "B t"]):
        each = -log_one_minus_p(logits, jax.nn.logsumexp(logits, axis=-1))
        return jnp.take_along_axis(each, tokens[..., None], axis=-1)[..., 0]

    return jnp.where(repeats(written, n), over_logits(model, params, unlikely, x, written), 0.0)


def repeats(tokens: Int[Array, "B T"], n: int) -> Bool[Array, "B T"]:
    """Which tokens are part of an n-gram that begins earlier in the row, too; T > n."""
    grams = jnp.stack([tokens[:, i : tokens.shape[1] - n + 1 + i] for i in range(n)], axis=-1)
    same = (grams[:, :, None] == grams[:, None]).all(axis=-1)
    repeated = jnp.tril(same, -1).any(axis=-1)
    return jnp.stack([jnp.pad(repeated, ((0, 0), (i, n - 1 - i))) for i in range(n)], axis=-1).any(
        axis=-1
    )
