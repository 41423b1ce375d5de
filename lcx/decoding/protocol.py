"""What a penalty and a decoding are, and what they are given."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float32, Int, Key

Logits = Float32[Array, "B vocab"]
Mask = Bool[Array, "B vocab"]


class Seen(NamedTuple):
    """What stands in each row so far: the prompt, then what was written, from index 0 on."""

    tokens: Int[Array, "B S"]
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

    def filtered(self, logits: Logits, seen: Seen) -> Logits:
        """What is drawn from, up to a constant for each row; -inf where not allowed."""
        ...

    def choose(self, keys: Key[Array, " B"], logits: Logits, seen: Seen) -> Int[Array, " B"]:
        """A token for each row, drawn with the row's own key from `filtered`."""
        ...
