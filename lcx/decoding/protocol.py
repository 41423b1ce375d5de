"""What penalties, decodings and searches are, and what they are given."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Float32, Int, Key

from lcx.types import State

Logits = Float32[Array, "B vocab"]
Mask = Bool[Array, "B vocab"]


class Seen(NamedTuple):
    """What stands in each row so far: the prompt, then what was written, from index 0 on."""

    tokens: Int[Array, "B length"]
    """Beyond `length` a row means nothing, and may hold anything."""
    length: Int[Array, " B"]
    """Tokens of each row, prompt included."""
    prompt: Int[Array, " B"]
    """How many of them are the prompt."""


@runtime_checkable
class Penalty(Protocol):
    """What changes logits by what a row holds already."""

    def __call__(self, logits: Logits, seen: Seen) -> Logits:
        """Logits of the same shape. A row's depend on its own first `length` tokens alone."""
        ...


@runtime_checkable
class Decoding(Protocol):
    """How the next token of each row is chosen from the model's logits."""

    @property
    def penalties(self) -> tuple[Penalty, ...]:
        """Applied first, in this order."""
        ...

    @property
    def draws(self) -> bool:
        """Whether anything is left to chance: if not, each text of a prompt is the same."""
        ...

    def filtered(self, logits: Logits, seen: Seen) -> Logits:
        """What is drawn from, up to a constant for each row; -inf where not allowed."""
        ...

    def choose(self, keys: Key[Array, " B"], logits: Logits, seen: Seen) -> Int[Array, " B"]:
        """A token for each row, drawn with the row's own key from `filtered`."""
        ...


# ------------------------------------------------------------------------------ a step of writing


class Read(NamedTuple):
    """What a model makes of the last token of each row."""

    hidden: Float[Array, "B D"]
    """What the head reads."""
    logits: Logits
    """Of the next token; -inf of ids that may not be written."""
    state: State


Reader = Callable[[Int[Array, " B"], State], Read]
"""A model: reads one more token of each row, each at the place that its state has reached."""


class Ends(NamedTuple):
    """What ends a text."""

    tokens: Int[Array, " E"]
    """Each of these ids ends a text, and is not part of it."""
    limit: Int[Array, " B"]
    """Tokens that each text may have, prompt included."""

    def reached(self, tokens: Int[Array, "*n"]) -> Bool[Array, "*n"]:
        """Whether a token ends a text."""
        return (tokens[..., None] == self.tokens).any(axis=-1)


class Found(NamedTuple):
    """The best texts of each prompt, the best first."""

    tokens: Int[Array, "prompts results length"]
    """Prompts included; beyond `length` they mean nothing."""
    length: Int[Array, "prompts results"]
    stopped: Bool[Array, "prompts results"]
    """Whether a token of `Ends` ended it, and not the limit."""
    score: Float32[Array, "prompts results"]
    """What it was chosen by; NaN where nothing was compared."""


@runtime_checkable
class Search(Protocol):
    """How texts grow by a token: what is carried from step to step, and what was found."""

    @property
    def rows(self) -> int:
        """Rows of the model's state that one prompt takes."""
        ...

    @property
    def draws(self) -> bool:
        """Whether anything is left to chance: if not, each text of a prompt is the same."""
        ...

    @property
    def looks_back(self) -> bool:
        """Whether `begin` is given what the head reads of all tokens of the prompts."""
        ...

    @property
    def steady(self) -> bool:
        """Whether what was written stays written, and can be shown before the text ends."""
        ...

    def begin(
        self, read: Read, seen: Seen, hidden: Float[Array, "prompts length D"] | None, ends: Ends
    ) -> Any:
        """What is carried after the prompts; their states still have one row each."""
        ...

    def step(self, going: Any, keys: Key[Array, " prompts"], reader: Reader, ends: Ends) -> Any:
        """One token more of each text that has not ended. `keys`: of each prompt."""
        ...

    def over(self, going: Any) -> Bool[Array, " prompts"]:
        """Which prompts have their texts."""
        ...

    def found(self, going: Any) -> Found:
        """The texts so far."""
        ...
