"""A decoding as a search: one text a prompt, and nothing taken back."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from lcx.decoding.protocol import Decoding, Ends, Found, Read, Reader, Seen, with_token


class Going(NamedTuple):
    """What one step of writing hands to the next."""

    read: Read
    seen: Seen
    over: Bool[Array, " B"]
    stopped: Bool[Array, " B"]


@dataclass(frozen=True)
class OneByOne:
    """Each token is chosen by a decoding, once and for all."""

    decoding: Decoding

    @property
    def rows(self) -> int:
        return 1

    @property
    def draws(self) -> bool:
        return self.decoding.draws

    @property
    def looks_back(self) -> bool:
        return False

    @property
    def steady(self) -> bool:
        return True

    def begin(
        self, read: Read, seen: Seen, hidden: Float[Array, "P S D"] | None, ends: Ends
    ) -> Going:
        none = jnp.zeros(seen.length.shape, bool)
        return Going(read, seen, none, none)

    def step(self, going: Going, keys: Key[Array, " P"], reader: Reader, ends: Ends) -> Going:
        read, seen, over, stopped = going
        drawn = jax.vmap(jax.random.fold_in)(keys, seen.length)  # a text goes on as it would have
        token = self.decoding.choose(drawn, read.logits, seen)
        stopped |= ~over & ends.reached(token)
        seen = with_token(seen, token, over | stopped)
        return Going(
            reader(token, read.state), seen, over | stopped | (seen.length >= ends.limit), stopped
        )

    def over(self, going: Going) -> Bool[Array, " P"]:
        return going.over

    def found(self, going: Going) -> Found:
        seen = going.seen
        score = jnp.full(seen.length.shape, jnp.nan)
        return Found(*(x[:, None] for x in (seen.tokens, seen.length, going.stopped, score)))
