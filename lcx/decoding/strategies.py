"""Decodings: penalties on what was seen, a temperature, a filter, and one draw a row."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Key

from lcx.decoding.chances import draw, entropy, first_largest, ordinals, threshold
from lcx.decoding.penalties import penalised
from lcx.decoding.protocol import Logits, Mask, Penalty, Seen


@dataclass(frozen=True)
class Greedy:
    """The most likely token; of several the one with the lowest id."""

    penalties: tuple[Penalty, ...] = ()

    @property
    def draws(self) -> bool:
        return False

    def filtered(self, logits: Logits, seen: Seen) -> Logits:
        return _likeliest(penalised(self.penalties, logits, seen))

    def choose(self, keys: Key[Array, " B"], logits: Logits, seen: Seen) -> Int[Array, " B"]:
        return first_largest(penalised(self.penalties, logits, seen))


class Sampling(ABC):
    """What decodings that draw share: penalties, then the temperature, then the filter, `keep`.

    Temperature 0 is greedy, exactly: the most likely token after the penalties, of several the one
    with the lowest id, whatever the filter and the keys.
    """

    def __post_init__(self):
        least = float(jnp.finfo(jnp.float32).tiny)
        fits = self.temperature == 0 or least <= self.temperature < math.inf
        self._check("temperature", fits, "0 (greedy) or a positive number of fp32")

    @property
    @abstractmethod
    def temperature(self) -> float:
        """What logits are divided by, before the filter."""

    @property
    @abstractmethod
    def penalties(self) -> tuple[Penalty, ...]:
        """Applied first, in this order."""

    @property
    def draws(self) -> bool:
        return self.temperature > 0

    @abstractmethod
    def keep(self, logits: Float32[Array, "B vocab"]) -> Bool[Array, "B vocab"]:
        """Which tokens may be drawn, of logits after penalties and temperature; at least one."""

    def filtered(self, logits: Logits, seen: Seen) -> Logits:
        logits = penalised(self.penalties, logits, seen)
        if self.temperature == 0:
            return _likeliest(logits)
        # the largest becomes 0, so that no temperature, however low, makes it infinite
        logits = (logits - jnp.max(logits, axis=1, keepdims=True)) / self.temperature
        return jnp.where(self.keep(logits), logits, -jnp.inf)

    def choose(self, keys: Key[Array, " B"], logits: Logits, seen: Seen) -> Int[Array, " B"]:
        if self.temperature == 0:
            return first_largest(penalised(self.penalties, logits, seen))
        return draw(keys, self.filtered(logits, seen))

    def _check(self, name: str, fits: bool, what: str) -> None:
        if not fits:
            raise ValueError(
                f"{type(self).__name__}: {name} must be {what}, not {getattr(self, name)}"
            )


@dataclass(frozen=True)
class Temperature(Sampling):
    """A draw from all tokens, at a temperature; 0 is greedy."""

    temperature: float = 1.0
    """Logits are divided by it; 1: the model's own chances; 0: greedy, exactly."""
    penalties: tuple[Penalty, ...] = ()

    def keep(self, logits: Logits) -> Mask:
        return jnp.ones(logits.shape, bool)


@dataclass(frozen=True)
class TopK(Sampling):
    """A draw from the k most likely tokens, and from all that are as likely as the last of them.

    Fan et al. 2018. More than the vocabulary has: all tokens.
    """

    k: int
    temperature: float = 1.0
    """Logits are divided by it before the filter; 0: greedy, exactly."""
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._check("k", self.k >= 1, "at least 1")

    def keep(self, logits: Logits) -> Mask:
        largest, _ = jax.lax.top_k(logits, min(self.k, logits.shape[1]))
        # a slice of the last would have XLA sort the whole vocabulary
        return logits >= jnp.min(largest, axis=1, keepdims=True)


@dataclass(frozen=True)
class TopP(Sampling):
    """A draw from the fewest most likely tokens that together have a chance of p (nucleus).

    Holtzman et al. 2020, section 3.1. The token that reaches p is kept; at least one is. Of equally
    likely tokens at the edge those with the lowest ids are kept.
    """

    p: float
    temperature: float = 1.0
    """Logits are divided by it before the filter; 0: greedy, exactly."""
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._check("p", 0 < self.p <= 1, "above 0 and at most 1")

    def keep(self, logits: Logits) -> Mask:
        def kept(below: Float32[Array, "B v"]) -> Bool[Array, "B v"]:
            return below > 1 - self.p  # from the unlikely end, where sums round least

        chances, places = jax.nn.softmax(logits), ordinals(logits)
        edge = threshold(places, chances, kept)
        below = jnp.sum(jnp.where(places < edge, chances, 0), axis=1, keepdims=True)
        tied = places == edge
        after = jnp.sum(tied, axis=1, keepdims=True) - jnp.cumsum(tied, axis=1)
        within = tied & kept(below + (after + 1) * chances)
        one = jnp.arange(logits.shape[1]) == first_largest(logits)[:, None]
        return (places > edge) | within | one


@dataclass(frozen=True)
class MinP(Sampling):
    """A draw from the tokens that have at least p times the chance of the most likely one.

    Nguyen et al. 2024.
    """

    p: float
    """0: all tokens."""
    temperature: float = 1.0
    """Logits are divided by it before the filter; 0: greedy, exactly."""
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._check("p", 0 <= self.p <= 1, "in [0, 1]")

    def keep(self, logits: Logits) -> Mask:
        chances = jax.nn.softmax(logits)
        return chances >= self.p * jnp.max(chances, axis=1, keepdims=True)


@dataclass(frozen=True)
class Typical(Sampling):
    """A draw from the tokens whose surprisal is nearest the entropy, of this much chance together.

    Meister et al. 2023. The token that reaches the mass is kept, with all that are as
    near; the most likely token need not be.
    """

    mass: float
    temperature: float = 1.0
    """Logits are divided by it before the filter; 0: greedy, exactly."""
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._check("mass", 0 < self.mass < 1, "above 0 and below 1")

    def keep(self, logits: Logits) -> Mask:
        log_p = jax.nn.log_softmax(logits)
        places = ordinals(jnp.abs(-log_p - entropy(logits)[:, None]))
        return places <= threshold(places, jnp.exp(log_p), lambda mass: mass >= self.mass)


@dataclass(frozen=True)
class Filters(Sampling):
    """A draw from what several filters leave, each of which sees what those before it have left.

    `Filters((TopK(50), TopP(0.9)), temperature=0.8)`. Chances are over what is left: the order
    matters, and is top-k, then top-p, in transformers.
    """

    filters: tuple[Sampling, ...]
    """With neither temperature nor penalties of their own."""
    temperature: float = 1.0
    """Logits are divided by it before the filters; 0: greedy, exactly."""
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self._check("filters", len(self.filters) > 0, "at least one")
        for own in self.filters:
            if own.temperature != 1 or own.penalties:
                raise ValueError(
                    f"Filters: temperature and penalties are its own, not those of {own}"
                )

    def keep(self, logits: Logits) -> Mask:
        for own in self.filters:
            logits = jnp.where(own.keep(logits), logits, -jnp.inf)
        return logits > -jnp.inf


def _likeliest(logits: Logits) -> Logits:
    """The logits with all but the most likely token left out."""
    chosen = jnp.arange(logits.shape[1]) == first_largest(logits)[:, None]
    return jnp.where(chosen, logits, -jnp.inf)
