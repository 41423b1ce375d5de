"""How texts are written on: one line a penalty, a decoding and a search, in the tables.

Everything works on a batch of ragged rows at static shapes, in fp32.
"""

from lcx.decoding.beams import BeamSearch
from lcx.decoding.chances import entropy
from lcx.decoding.contrastive import ContrastiveSearch
from lcx.decoding.one_by_one import OneByOne
from lcx.decoding.penalties import (
    FrequencyPenalty,
    MinLength,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
)
from lcx.decoding.protocol import Decoding, Ends, Found, Penalty, Read, Reader, Search, Seen
from lcx.decoding.strategies import (
    Filters,
    Greedy,
    MinP,
    Sampling,
    Temperature,
    TopK,
    TopP,
    Typical,
)

DECODINGS: dict[str, type] = {
    c.__name__: c for c in (Greedy, Temperature, TopK, TopP, MinP, Typical, Filters)
}

SEARCHES: dict[str, type] = {c.__name__: c for c in (BeamSearch, ContrastiveSearch)}

PENALTIES: dict[str, type] = {
    c.__name__: c
    for c in (RepetitionPenalty, PresencePenalty, FrequencyPenalty, NoRepeatNGram, MinLength)
}

__all__ = [
    "DECODINGS",
    "PENALTIES",
    "SEARCHES",
    "BeamSearch",
    "ContrastiveSearch",
    "Decoding",
    "Ends",
    "Filters",
    "Found",
    "FrequencyPenalty",
    "Greedy",
    "MinLength",
    "MinP",
    "NoRepeatNGram",
    "OneByOne",
    "Penalty",
    "PresencePenalty",
    "Read",
    "Reader",
    "RepetitionPenalty",
    "Sampling",
    "Search",
    "Seen",
    "Temperature",
    "TopK",
    "TopP",
    "Typical",
    "entropy",
]
