"""What a source gives: named documents, and how they are divided."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from lcx.cache import Digest

SPLITS = ("train", "validation", "test")


class Document(NamedTuple):
    """One text. Always bytes: whatever its encoding, nothing of it is lost."""

    name: str
    text: bytes


Spans = tuple[tuple[int, int], ...]
"""Bytes [first, last) of a text, ascending and apart."""


class Marks(NamedTuple):
    """What is known of a document's bytes beside the text."""

    scored: Spans | None = None
    """What a model is trained to predict: the tokens that begin there. None: everything."""
    special: Spans = ()
    """What stands for special tokens, each spelled as its tokenizer calls it."""

    def within(self, first: int, last: int) -> "Marks":
        """Those of the piece [first, last). A special token that is cut through is plain text."""
        scored = self.scored
        if scored is not None:
            ends = ((max(a, first) - first, min(b, last) - first) for a, b in scored)
            scored = tuple((a, b) for a, b in ends if a < b)
        whole = (s for s in self.special if first <= s[0] and s[1] <= last)
        return Marks(scored, tuple((a - first, b - first) for a, b in whole))


class Documents:
    """Documents in a stable order: names known at once, texts read when asked for.

    `groups` says what belongs together, pieces of one text or near copies: documents of one group
    bear the same name there, and go to the same split. By default each stands alone. `marks` gives
    those of a document by its index; None: none has any. `notes` are sentences on how they were
    found, for whoever trains on them. `paired`: documents 2i and 2i + 1, of one group, are a
    preferred answer and a rejected one.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[int], bytes],
        groups: Sequence[str] | None = None,
        marks: Callable[[int], Marks] | None = None,
        notes: Sequence[str] = (),
        paired: bool = False,
    ):
        self.names = names
        self.groups = names if groups is None else groups
        self.notes = notes
        self.paired = paired
        self._read = read
        self._marks = marks

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Document:
        index = range(len(self))[index]
        return Document(self.names[index], self._read(index))

    def __iter__(self) -> Iterator[Document]:
        return map(self.__getitem__, range(len(self)))

    @property
    def marked(self) -> bool:
        """Whether any document may have marks."""
        return self._marks is not None

    def marks(self, index: int) -> Marks:
        """What is known of the bytes of one document."""
        return Marks() if self._marks is None else self._marks(index)

    def select(self, indices: Sequence[int]) -> "Documents":
        """Those at `indices`, in that order; of pairs, whole pairs."""
        names, groups = ([of[i] for i in indices] for of in (self.names, self.groups))
        of = self._marks
        marks = None if of is None else lambda i: of(indices[i])
        return Documents(
            names, lambda i: self._read(indices[i]), groups, marks, self.notes, self.paired
        )

    def preferred(self) -> "Documents":
        """Of pairs, the preferred answers alone."""
        every = self.select(range(0, len(self), 2))
        every.paired = False
        return every

    def grouped(self, groups: Sequence[str]) -> "Documents":
        """The same documents in other groups."""
        return Documents(self.names, self._read, groups, self._marks, self.notes, self.paired)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every name, every byte and every mark."""
        digest = Digest()
        for index, (name, text) in enumerate(self):
            digest.add(name, text, *([repr(self.marks(index))] if self.marked else ()))
        return str(digest)


def split_of(group: str, validation: float, test: float) -> str:
    """The split that a group of documents belongs to, by its name.

    The name's hash is a point in [0, 1): test lies at the low end and validation next to it. So a
    group's place depends on no other, on no seed and on no machine, and a change of `validation`
    moves nothing into or out of test.
    """
    at = point(group)
    if at < test:
        return "test"
    return "validation" if at < test + validation else "train"


def point(name: str) -> float:
    """A name's hash, in [0, 1)."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split(documents: Documents, validation: float, test: float) -> dict[str, Documents]:
    """The documents of each split, in their stable order."""
    indices: dict[str, list[int]] = {name: [] for name in SPLITS}
    for index, group in enumerate(documents.groups):
        indices[split_of(group, validation, test)].append(index)
    return {name: documents.select(chosen) for name, chosen in indices.items()}
