"""Strings that end a text."""

from collections.abc import Sequence

import numpy as np

from lcx.data import Tokenizer
from lcx.types import Ids


class StopStrings:
    """Ends a text before the first of some strings, wherever in a token that begins."""

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer):
        """Raises ValueError for an empty string."""
        if not all(strings):
            raise ValueError("a stop string is empty: every text would end at once")
        self._strings = [string.encode() for string in strings]
        self._tokenizer = tokenizer

    def cut(self, ids: Ids) -> Ids | None:
        """The tokens of the text before the first stop string; None where there is none.

        Where a token holds the string's beginning and more, the rest of it is encoded by itself.
        """
        text = self._tokenizer.decode(ids)
        end = min((at for at in map(text.find, self._strings) if at >= 0), default=None)
        if end is None:
            return None
        whole, bytes_before = self._upto(ids, end)
        rest = self._tokenizer.encode(text[bytes_before:end])
        return np.concatenate([ids[:whole], rest]).astype(np.int32)

    def settled(self, ids: Ids) -> int:
        """How many tokens no stop string can reach into that is not written whole yet."""
        held = max(map(len, self._strings), default=1) - 1
        return self._upto(ids, len(self._tokenizer.decode(ids)) - held)[0]

    def _upto(self, ids: Ids, end: int) -> tuple[int, int]:
        """How many tokens lie before this byte, and how many bytes they have."""
        ends = np.cumsum(self._tokenizer.byte_lengths[ids])
        count = int(np.searchsorted(ends, end, side="right"))
        return count, int(ends[count - 1]) if count else 0
