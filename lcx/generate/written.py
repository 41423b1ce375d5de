"""What was written after a prompt."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from lcx.types import Ids


class Written(NamedTuple):
    """What was written after one prompt."""

    tokens: Ids
    """Without the prompt, and without the stop token or string."""
    stopped: bool
    """Whether a stop token or string ended it, and not the number of tokens."""
    score: float = math.nan
    """Of a `BeamSearch` without a guard: log-probabilities by length; of others NaN."""
    loops: int = 0
    """That a guard has seen in it, and acted on."""


NOTHING = Written(np.zeros(0, np.int32), False)


class Begun(NamedTuple):
    """A text to go on with."""

    tokens: Ids
    prompt: int
    """How many of them are the prompt. The others were written before: they count for penalties
    and stop strings."""
    new: int
    """Tokens at most that are added."""
    becomes: int
    """Tokens that it has in the end at most, prompt included: for positions that depend on it."""
    key: Key[Array, ""]
    """Of what is drawn."""


class Part(NamedTuple):
    """What comes next of one text."""

    kept: int
    """Tokens after the prompt that stay, of those there were: a stop string may reach into them."""
    added: Written
    over: bool
    """Whether nothing follows."""


def joined(a: Written, b: Written) -> Written:
    """Two parts of one text."""
    return b._replace(tokens=np.concatenate([a.tokens, b.tokens]))
