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


class Documents:
    """Documents in a stable order: names known at once, texts read when asked for.

    `groups` says what belongs together, pieces of one text or near copies: documents of one group
    bear the same name there, and go to the same split. By default each stands alone.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[int], bytes],
        groups: Sequence[str] | None = None,
    ):
        self.names = names
        self.groups = names if groups is None else groups
        self._read = read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Document:
        index = range(len(self))[index]
        return Document(self.names[index], self._read(index))

    def __iter__(self) -> Iterator[Document]:
        return map(self.__getitem__, range(len(self)))

    def select(self, indices: Sequence[int]) -> "Documents":
        """Those at `indices`, in that order."""
        names, groups = ([of[i] for i in indices] for of in (self.names, self.groups))
        return Documents(names, lambda i: self._read(indices[i]), groups)

    def grouped(self, groups: Sequence[str]) -> "Documents":
        """The same documents in other groups."""
        return Documents(self.names, self._read, groups)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every name and every byte."""
        digest = Digest()
        for name, text in self:
            digest.add(name, text)
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
