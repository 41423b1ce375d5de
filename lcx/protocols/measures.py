"""What is made of each target, and which numbers a score is given in."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class TokenScores(NamedTuple):
    """What logits make of each target; fp32."""

    nll: Float[Array, "*n"]
    """Negative log-likelihood, in nats."""
    log_z: Float[Array, "*n"]
    """The logarithm of the softmax's normaliser."""
    hit: Bool[Array, "*n"]
    """Whether no token was likelier."""


def token_scores(logits: Float[Array, "*n vocab"], targets: Int[Array, "*n"]) -> TokenScores:
    """Score each target."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return TokenScores(log_z - picked, log_z, picked >= logits.max(axis=-1))


@dataclass(frozen=True)
class Measure:
    """A number that a score is given in: the mean of something over the targets, on some scale.

    Plain values, which a result keeps beside its numbers.
    """

    name: str
    key: str
    """What it is called in a point of a curve."""
    interval: str
    """What its 95% interval is called there."""
    sums: str
    """What is averaged: an entry of the protocol's `per_token`, or of what it has `counted`."""
    formula: str
    """In a sentence, for the page."""
    per: Literal["tokens", "bytes", "prompts", "all"] = "tokens"
    """What the sum is divided by; "all": it is no sum, but a number of all texts as one, of which
    no interval is known."""
    better: Literal["lower", "higher"] = "lower"
    scale: Literal["as it is", "exponential", "bits"] = "as it is"
    """What is made of the mean; exponentials are compared by their ratio, others by difference."""
    bounds: tuple[float, float] | None = None
    """Between which values it lies, if it has two."""

    @property
    def best(self) -> Callable[[Iterable[float]], float]:
        """`min` or `max`."""
        return min if self.better == "lower" else max

    @property
    def compared(self) -> Literal["ratio", "difference"]:
        """How two values are compared."""
        return "ratio" if self.scale == "exponential" else "difference"

    @property
    def neutral(self) -> int:
        """What the comparison of two equal values gives."""
        return 1 if self.compared == "ratio" else 0

    def value(self, x: float) -> float:
        """The measure (or its comparison) from a mean (or a difference of means) of `sums`."""
        match self.scale:
            case "exponential":
                with np.errstate(over="ignore"):
                    return float(np.exp(np.float64(x)))
            case "bits":
                return x / math.log(2)
            case _:
                return x

    def within(self, interval: list[float]) -> list[float]:
        """An interval, less what lies where the measure cannot; NaN stays."""
        if self.bounds is None:
            return interval
        low, high = self.bounds
        return [min(high, max(low, x)) if x == x else x for x in interval]


PERPLEXITY = Measure(
    name="perplexity",
    key="ppl",
    interval="ci95",
    sums="nll",
    formula="Perplexity is the exponential of the mean negative log-likelihood per target token",
    scale="exponential",
)
BITS = Measure(
    name="bits per byte",
    key="bits_per_byte",
    interval="bits_ci95",
    sums="nll",
    formula="Bits per byte are the negative log-likelihood of the targets over their bytes, which "
    "do not depend on the tokenizer",
    per="bytes",
    scale="bits",
)
ACCURACY = Measure(
    name="accuracy",
    key="accuracy",
    interval="accuracy_ci95",
    sums="hits",
    formula="Accuracy is the share of targets that no other token is likelier than",
    better="higher",
    bounds=(0.0, 1.0),
)
