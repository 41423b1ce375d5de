"""Contrastive search: likely tokens that are unlike what stands there already."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from lcx.decoding.penalties import penalised
from lcx.decoding.protocol import Ends, Found, Penalty, Read, Reader, Seen
from lcx.decoding.texts import Texts
from lcx.types import take_rows


class Going(NamedTuple):
    """What one step of writing hands to the next."""

    read: Read
    texts: Texts
    directions: Float32[Array, "prompts length D"]
    """Of what the head reads of each token of a text, unit vectors; beyond its length anything."""


@dataclass(frozen=True)
class ContrastiveSearch:
    """Of the k likeliest tokens the one that is likely, and unlike what stands there.

    It has the most (1 - alpha) p(v) - alpha max_j cos(h_v, h_j) of these tokens v.
    h_j: what the head reads of each token of the text, prompt included; h_v: of the candidate.
    Su et al. 2022 (SimCTG, arXiv:2202.06417), equation 5. Each token takes k rows of the model, and
    k copies of its state. k = 1 is greedy, and so is alpha = 0.
    """

    k: int = 4
    alpha: float = 0.6
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"ContrastiveSearch: k must be at least 1, not {self.k}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"ContrastiveSearch: alpha must be in [0, 1], not {self.alpha}")

    @property
    def rows(self) -> int:
        return self.k

    @property
    def draws(self) -> bool:
        return False

    @property
    def looks_back(self) -> bool:
        return True

    @property
    def steady(self) -> bool:
        return True

    def begin(
        self, read: Read, seen: Seen, hidden: Float[Array, "prompts length D"] | None, ends: Ends
    ) -> Going:
        assert hidden is not None
        return Going(read, Texts.begun(seen), _directions(hidden))

    def step(self, going: Going, keys: Key[Array, " prompts"], reader: Reader, ends: Ends) -> Going:
        read, texts, directions = going
        seen = texts.seen
        P, k = len(seen.length), min(self.k, read.logits.shape[1])
        chances = jax.nn.softmax(penalised(self.penalties, read.logits, seen))
        chances, tokens = jax.lax.top_k(chances, k)
        each = jnp.repeat(jnp.arange(P), k)
        tried = reader(tokens.reshape(-1), take_rows(read.state, each))
        tried_directions = _directions(tried.hidden).reshape(P, k, -1)
        alike = jnp.einsum("pkd,psd->pks", tried_directions, directions, precision="highest")
        there = jnp.arange(directions.shape[1]) < seen.length[:, None]
        most = jnp.max(jnp.where(there[:, None], alike, -jnp.inf), axis=-1)
        # what has no chance is no candidate, however few others there are
        scores = jnp.where(chances > 0, (1 - self.alpha) * chances - self.alpha * most, -jnp.inf)
        best = jnp.argmax(scores, axis=1)
        rows = jnp.arange(P) * k + best
        at = jnp.minimum(seen.length, directions.shape[1] - 1)
        directions = directions.at[jnp.arange(P), at].set(_picked(tried_directions, best))
        texts = texts.add(_picked(tokens, best), ends)
        return Going(Read(*take_rows(tried, rows)), texts, directions)

    def over(self, going: Going) -> Bool[Array, " prompts"]:
        return going.texts.over

    def found(self, going: Going) -> Found:
        return going.texts.found()


def _directions(hidden: Float[Array, "*n D"]) -> Float32[Array, "*n D"]:
    hidden = hidden.astype(jnp.float32)
    return hidden / jnp.maximum(jnp.linalg.norm(hidden, axis=-1, keepdims=True), 1e-30)


def _picked(of: Array, best: Int[Array, " prompts"]) -> Array:
    """of [P k ...]: each prompt's best [P ...]."""
    return of[jnp.arange(len(best)), best]
