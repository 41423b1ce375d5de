"""How the next token is chosen: one line a penalty and one a decoding, in the tables.

Everything works on a batch of ragged rows at static shapes, in fp32.
"""

from lcx.decoding.chances import entropy
from lcx.decoding.penalties import (
    FrequencyPenalty,
    MinLength,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
)
from lcx.decoding.protocol import Decoding, Penalty, Seen
from lcx.decoding.strategies import Greedy, MinP, Sampling, Temperature, TopK, TopP, Typical

DECODINGS: dict[str, type] = {
    c.__name__: c for c in (Greedy, Temperature, TopK, TopP, MinP, Typical)
}

PENALTIES: dict[str, type] = {
    c.__name__: c
    for c in (RepetitionPenalty, PresencePenalty, FrequencyPenalty, NoRepeatNGram, MinLength)
}

__all__ = [
    "DECODINGS",
    "PENALTIES",
    "Decoding",
    "FrequencyPenalty",
    "Greedy",
    "MinLength",
    "MinP",
    "NoRepeatNGram",
    "Penalty",
    "PresencePenalty",
    "RepetitionPenalty",
    "Sampling",
    "Seen",
    "Temperature",
    "TopK",
    "TopP",
    "Typical",
    "entropy",
]
