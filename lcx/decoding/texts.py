"""Texts of which nothing is taken back, one a prompt: for searches that add a token at a time."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lcx.decoding.protocol import Ends, Found, Seen


class Texts(NamedTuple):
    """What was written, and which texts have ended."""

    seen: Seen
    over: Bool[Array, " prompts"]
    stopped: Bool[Array, " prompts"]
    """Those that a token of `Ends` has ended."""

    @classmethod
    def begun(cls, seen: Seen) -> "Texts":
        """The prompts."""
        none = jnp.zeros(seen.length.shape, bool)
        return cls(seen, none, none)

    def add(self, token: Int[Array, " prompts"], ends: Ends) -> "Texts":
        """With one token more of each text that has not ended."""
        (tokens, length, prompt), over, stopped = self
        stopped |= ~over & ends.reached(token)
        over |= stopped
        at = jnp.where(over, tokens.shape[1], length)  # beyond the end: not written
        tokens = tokens.at[jnp.arange(len(token)), at].set(token, mode="drop")
        length += ~over
        return Texts(Seen(tokens, length, prompt), over | (length >= ends.limit), stopped)

    def found(self) -> Found:
        """One text of each prompt, which nothing was compared with."""
        tokens, length, _ = self.seen
        score = jnp.full(length.shape, jnp.nan)
        return Found(*(x[:, None] for x in (tokens, length, self.stopped, score)))
