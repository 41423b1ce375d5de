"""From a document with marks to token ids, and which of them are scored.

Where a template put a special token, its id stands, if the tokenizer has one of that name. What
stands between is text, and text never becomes a special token, whatever it spells. A token is
scored if it begins in a span that is. So one that begins in a header and reaches into the answer is
not scored, and one that begins in the answer is, also where it reaches beyond its end.
"""

import numpy as np
from jaxtyping import Bool, Int

from lcx.data.documents import Marks
from lcx.data.tokenizers import Tokenizer
from lcx.types import Ids


def encode(text: bytes, marks: Marks, tokenizer: Tokenizer) -> Ids:
    """Ids (int32) of a document, without the BOS that begins it.

    Raises ValueError where the text has, outside of its marks, what spells a special token of the
    template that the tokenizer has no token for: the two could not be told apart.
    """
    if not marks.special:
        return tokenizer.encode(text)
    parts: list[Ids] = []
    at, absent = 0, dict[bytes, int]()
    for first, last in marks.special:
        name = text[first:last]
        known = tokenizer.special.get(name.decode())
        if known is None:
            absent[name] = absent.get(name, 0) + 1
            continue
        parts += [tokenizer.encode(text[at:first]), np.array([known], np.int32)]
        at = last
    for name, count in absent.items():
        if text.count(name) > count:
            raise ValueError(
                f"what is said there holds {name.decode()!r}, which ends or begins turns in this "
                "template and is no special token of the tokenizer, so that the two could not be "
                "told apart: take a tokenizer that has it, another template, or leave the entry out"
            )
    return np.concatenate([*parts, tokenizer.encode(text[at:])])


def starts_of(ids: Ids, tokenizer: Tokenizer) -> Ids:
    """The byte of its document at which each token begins. Ids without the BOS that begins it."""
    sizes = tokenizer.byte_lengths.copy()
    for name, index in tokenizer.special.items():
        sizes[index] = len(name.encode())  # they are spelled in the document
    sizes = sizes[ids]
    return np.cumsum(sizes) - sizes


def scored_of(ids: Ids, marks: Marks, tokenizer: Tokenizer) -> Bool[np.ndarray, " n"]:
    """Which tokens of a document are scored: those that begin in a span that is."""
    if marks.scored is None:
        return np.ones(len(ids), bool)
    scored = np.zeros(len(ids), bool)
    edges: Int[np.ndarray, "spans 2"] = np.array(marks.scored, np.int64).reshape(-1, 2)
    for first, last in np.searchsorted(starts_of(ids, tokenizer), edges).tolist():
        scored[first:last] = True
    return scored
