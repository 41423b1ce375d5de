"""A decoding as a search: one text a prompt, and nothing taken back."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Key

from lcx.decoding.protocol import Decoding, Ends, Found, Read, Reader, Seen
from lcx.decoding.texts import Texts


class Going(NamedTuple):
    """What one step of writing hands to the next."""

    read: Read
    texts: Texts


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
        self, read: Read, seen: Seen, hidden: Float[Array, "prompts length D"] | None, ends: Ends
    ) -> Going:
        return Going(read, Texts.begun(seen))

    def step(self, going: Going, keys: Key[Array, " prompts"], reader: Reader, ends: Ends) -> Going:
        read, texts = going
        seen = texts.seen
        drawn = jax.vmap(jax.random.fold_in)(keys, seen.length)  # a text goes on as it would have
        token = self.decoding.choose(drawn, read.logits, seen)
        return Going(reader(token, read.state), texts.add(token, ends))

    def over(self, going: Going) -> Bool[Array, " prompts"]:
        return going.texts.over

    def found(self, going: Going) -> Found:
        return going.texts.found()
