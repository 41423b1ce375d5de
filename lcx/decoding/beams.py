"""Beam search: the texts that are likeliest as a whole, as far as a few rows a prompt find them."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from lcx.decoding.penalties import penalised
from lcx.decoding.protocol import Ends, Found, Penalty, Read, Reader, Seen
from lcx.types import take_rows

NEVER = -1e9
"""A log-probability that no text has."""


class Going(NamedTuple):
    """What one step of writing hands to the next: k texts that grow, the k best that ended."""

    read: Read
    """Of P k rows, prompt by prompt."""
    seen: Seen
    """Of P k rows."""
    log_p: Float32[Array, "prompts k"]
    """Of what was written, in nats."""
    ended: Found
    """-inf as the score of places that are free."""
    over: Bool[Array, " prompts"]
    begun: Int[Array, " prompts"]
    """How long the texts were when the search began."""


@dataclass(frozen=True)
class BeamSearch:
    """The text with the most sum of log p(token) / tokens^length_penalty that k beams find.

    Tokens: what was written, the one that ends it included. In each step the k likeliest of all
    texts that are one token longer go on. One among them that has ended is put aside, and the
    search ends where no beam, at its present length, is better than the worst of k that have: as
    in transformers (`early_stopping=False`). Penalties change log-probabilities, which are
    negative: a `RepetitionPenalty` multiplies them all. Each beam takes a row of the model and its
    state.
    """

    beams: int = 4
    length_penalty: float = 1.0
    """0: none, shorter texts win; above 1: longer ones do."""
    penalties: tuple[Penalty, ...] = ()

    def __post_init__(self):
        if self.beams < 1:
            raise ValueError(f"BeamSearch: beams must be at least 1, not {self.beams}")
        if not 0 <= self.length_penalty < math.inf:
            raise ValueError(
                "BeamSearch: length_penalty must be 0 or positive, and finite, not "
                f"{self.length_penalty}"
            )

    @property
    def rows(self) -> int:
        return self.beams

    @property
    def draws(self) -> bool:
        return False

    @property
    def looks_back(self) -> bool:
        return False

    @property
    def steady(self) -> bool:
        return False

    def begin(
        self, read: Read, seen: Seen, hidden: Float[Array, "prompts length D"] | None, ends: Ends
    ) -> Going:
        (P, S), k = seen.tokens.shape, self.beams
        each = jnp.repeat(jnp.arange(P), k)
        # beams are the same yet: all but the first are left out of the first step
        log_p = jnp.where(jnp.arange(k) == 0, 0.0, jnp.full((P, k), NEVER))
        ended = Found(
            jnp.zeros((P, k, S), seen.tokens.dtype),
            jnp.zeros((P, k), seen.length.dtype),
            jnp.zeros((P, k), bool),
            jnp.full((P, k), -jnp.inf),
        )
        over = jnp.zeros(P, bool)
        rows = Read(*take_rows(read, each)), take_rows(seen, each)
        return Going(*rows, log_p, ended, over, seen.length)

    def step(self, going: Going, keys: Key[Array, " prompts"], reader: Reader, ends: Ends) -> Going:
        read, seen, log_p, ended, over, begun = going
        (P, k), vocab = log_p.shape, read.logits.shape[1]
        each = penalised(self.penalties, jax.nn.log_softmax(read.logits), seen)
        whole = jnp.maximum(log_p[..., None] + each.reshape(P, k, vocab), 2 * NEVER)
        # as many that k are left to go on, even if all others have ended
        count = min(max(2, 1 + len(ends.tokens)) * k, k * vocab)
        whole, index = jax.lax.top_k(whole.reshape(P, -1), count)
        parent, token = jnp.divmod(index, vocab)
        length = seen.length[::k, None] + 1  # beams of a prompt are equally long
        stop = ends.reached(token)
        stops = stop | (length >= ends.limit[:, None])

        places = jnp.arange(P)[:, None] * k
        before = seen.tokens[places + parent]  # [P count S]
        text = jnp.where(
            jnp.arange(before.shape[-1]) == (length - 1)[..., None], token[..., None], before
        )
        written = (length - begun[:, None]).astype(jnp.float32)
        scores = whole / written**self.length_penalty
        # a text that the limit ends is one token longer than one that a stop token ends
        new = Found(text, jnp.where(stop, length - 1, length), stop, scores)
        among = stops & (jnp.arange(count) < k) & (whole > NEVER)
        better = _best(ended, new._replace(score=jnp.where(among, scores, -jnp.inf)), k)
        ended = jax.tree.map(
            lambda a, b: jnp.where(over.reshape(-1, *[1] * (a.ndim - 1)), a, b), ended, better
        )

        log_p, on = jax.lax.top_k(jnp.where(stops, 2 * NEVER, whole), k)
        rows = (places + _taken(parent, on)).reshape(-1)
        token, text = _taken(token, on).reshape(-1), _taken(text, on).reshape(P * k, -1)
        read = reader(token, take_rows(read.state, rows))
        seen = Seen(text, jnp.repeat(length[:, 0], k), seen.prompt)
        hope = log_p[:, 0] / written[:, 0] ** self.length_penalty
        worse = hope <= jnp.min(ended.score, axis=1)  # -inf where a place is free
        over = over | worse | (length[:, 0] >= ends.limit)
        return Going(read, seen, log_p, ended, over, begun)

    def over(self, going: Going) -> Bool[Array, " prompts"]:
        return going.over

    def found(self, going: Going) -> Found:
        return going.ended


def _best(a: Found, b: Found, k: int) -> Found:
    """The k best of both, the best first."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), a, b)
    _, best = jax.lax.top_k(both.score, k)
    return jax.tree.map(lambda x: _taken(x, best), both)


def _taken(of: Array, index: Int[Array, "prompts n"]) -> Array:
    """of [P m ...]: these of each prompt, [P n ...]."""
    return of[jnp.arange(len(index))[:, None], index]
