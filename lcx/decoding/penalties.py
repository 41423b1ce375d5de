"""Penalties: what changes logits by what each row holds already."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lcx.decoding.protocol import Logits, Mask, Penalty, Seen


@dataclass(frozen=True)
class RepetitionPenalty:
    """Logits of tokens seen, prompt included, are divided by a factor; negative ones multiplied.

    Once for each token, however often it was seen. Keskar et al. 2019 (CTRL), section 4.1, in the
    form of transformers.
    """

    factor: float
    """Above 1: less repetition; 1 changes nothing."""

    def __post_init__(self):
        if not 0 < self.factor < math.inf:
            raise ValueError(
                "RepetitionPenalty: factor must be positive and finite, not "
                f"{self.factor}; 1 changes nothing"
            )

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        changed = jnp.where(logits < 0, logits * self.factor, logits / self.factor)
        return jnp.where(_counts(seen, logits.shape[1]) > 0, changed, logits)


@dataclass(frozen=True)
class PresencePenalty:
    """An amount is taken from the logits of tokens that were written, the prompt left out.

    As the OpenAI API defines it, by how often a token "was sampled prior to the current position".
    """

    amount: float
    """In nats; negative: more repetition."""

    def __post_init__(self):
        _check_finite(self, "amount", self.amount)

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        counts = _counts(seen, logits.shape[1], written_alone=True)
        return logits - self.amount * (counts > 0)


@dataclass(frozen=True)
class FrequencyPenalty:
    """An amount is taken from a token's logit for each time it was written, the prompt left out.

    As the OpenAI API defines it, by how often a token "was sampled prior to the current position".
    """

    amount: float
    """In nats; negative: more repetition."""

    def __post_init__(self):
        _check_finite(self, "amount", self.amount)

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        return logits - self.amount * _counts(seen, logits.shape[1], written_alone=True)


@dataclass(frozen=True)
class NoRepeatNGram:
    """No token that would end an n-gram which the row, prompt included, has already.

    Paulus et al. 2018, section 2.5. A row in which that would leave no token is let be.
    """

    n: int
    """1: no token twice."""

    def __post_init__(self):
        if self.n < 1:
            raise ValueError(f"NoRepeatNGram: n must be at least 1, not {self.n}")

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        before = self.n - 1  # tokens of an n-gram that stand there already
        starts = seen.tokens.shape[1] - before
        if starts < 1:
            return logits
        repeated = jnp.arange(starts) + self.n <= seen.length[:, None]
        for i in range(before):
            at = jnp.maximum(seen.length - before + i, 0)[:, None]
            last = jnp.take_along_axis(seen.tokens, at, axis=1)
            repeated &= seen.tokens[:, i : i + starts] == last
        return _without(logits, _per_token(seen.tokens[:, before:], repeated, logits.shape[1]) > 0)


@dataclass(frozen=True)
class MinLength:
    """No stop token before so many tokens were written, the prompt not counted.

    A row in which that would leave no token is let be.
    """

    tokens: int
    stop: tuple[int, ...]
    """Token ids."""

    def __post_init__(self):
        if self.tokens < 0:
            raise ValueError(f"MinLength: tokens cannot be negative, not {self.tokens}")
        if not self.stop or min(self.stop) < 0:
            raise ValueError(
                f"MinLength: stop must be one or more token ids from 0 on, not {self.stop}"
            )

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        vocab = logits.shape[1]
        if max(self.stop) >= vocab:
            raise ValueError(
                f"MinLength: stop token {max(self.stop)} is not among the {vocab} token ids, "
                f"0 to {vocab - 1}"
            )
        stops = jnp.zeros(vocab, bool).at[jnp.array(self.stop)].set(True)
        early = seen.length - seen.prompt < self.tokens
        return _without(logits, early[:, None] & stops)


def penalised(penalties: tuple[Penalty, ...], logits: Logits, seen: Seen) -> Logits:
    """The logits after all penalties, in their order."""
    for penalty in penalties:
        logits = penalty(logits, seen)
    return logits


def _check_finite(spec: object, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{type(spec).__name__}: {name} must be finite, not {value}")


def _per_token(
    tokens: Int[Array, "B s"], counted: Bool[Array, "B s"], vocab: int
) -> Int[Array, "B vocab"]:
    """How often each token id stands at a place that counts."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    none = jnp.zeros((tokens.shape[0], vocab), jnp.int32)
    return none.at[rows, tokens].add(counted.astype(jnp.int32), mode="drop")


def _counts(seen: Seen, vocab: int, written_alone: bool = False) -> Int[Array, "B vocab"]:
    """How often each token stands in each row, or in what was written of it."""
    at = jnp.arange(seen.tokens.shape[1])
    counted = at < seen.length[:, None]
    if written_alone:
        counted &= at >= seen.prompt[:, None]
    return _per_token(seen.tokens, counted, vocab)


def _without(logits: Logits, banned: Mask) -> Logits:
    """The logits without these tokens, in every row that has others."""
    others = jnp.any(~banned & (logits > -jnp.inf), axis=1, keepdims=True)
    return jnp.where(banned & others, -jnp.inf, logits)
