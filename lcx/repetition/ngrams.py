"""Sequences of tokens, and their n-grams, as small numbers."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

Tokens = Sequence[int] | Sequence[str] | np.ndarray
"""One text: token ids, or words."""
Numbers = Int[np.ndarray, "_"]


def words(text: str) -> list[str]:
    """What stands between white space, as SimCTG and most published scripts count words."""
    return text.split()


def ngrams(texts: Iterable[Tokens], n: int) -> list[Numbers]:
    """For each text its n-grams, in order; equal numbers are equal n-grams, in any of the texts.

    A text of T tokens has T - n + 1, one shorter than n has none. Raises ValueError where n is
    below 1, and TypeError for a text that is neither ids nor words: a string has to be cut first.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least 1 token, not n = {n}")
    tokens = _numbered([_checked(text) for text in texts])
    size = 1 + max((int(t.max()) for t in tokens if len(t)), default=0)
    found = tokens
    for k in range(1, n if tokens else 1):  # a (k+1)-gram is a k-gram and the token after it
        longer = [g[:-1] * size + t[k:] for g, t in zip(found, tokens, strict=True)]
        found = _split(np.unique(np.concatenate(longer), return_inverse=True)[1], longer)
    return found


def _checked(text: Tokens) -> Tokens:
    if isinstance(text, str):
        raise TypeError(f"a text is token ids or words, not a string: words({text[:20]!r})")
    if len(text) and not isinstance(text[0], str) and np.asarray(text).dtype.kind not in "iu":
        raise TypeError(f"a text is token ids or words, not {np.asarray(text).dtype} numbers")
    return text


def _numbered(texts: list[Tokens]) -> list[Numbers]:
    if any(len(text) and isinstance(text[0], str) for text in texts):
        known: dict[object, int] = {}
        return [
            np.array([known.setdefault(word, len(known)) for word in text], np.int64)
            for text in texts
        ]
    ids = [np.asarray(text).astype(np.int64) for text in texts]
    if not ids:
        return []
    return _split(np.unique(np.concatenate(ids), return_inverse=True)[1], ids)


def _split(numbers: Numbers, like: list[Numbers]) -> list[Numbers]:
    return np.split(numbers, np.cumsum([len(x) for x in like])[:-1])
