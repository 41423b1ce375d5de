"""Held out of the middle of documents: for texts that are few and long, a book or a log.

A document is divided into slots of equal length. Of each slot one piece is held out for testing and
one for validation, at places drawn by the document's name; what lies between held-out pieces is
trained on. Every piece, and every stretch between, is a document of its own: nothing that is read
before a target crosses from one into another.
"""

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from lcx.data.documents import SPLITS, Documents, Marks, point, split_of

PIECE = 32_768
"""Bytes of a held-out piece, about: room for contexts of 8,192 tokens of three or four bytes."""
LINE = 1024
"""Bytes: a piece begins and ends with a line, where one ends in so many bytes after its place."""


class Piece(NamedTuple):
    """Bytes [begin, end) of a document, and the split that they belong to."""

    begin: int
    end: int
    split: str


class Part(NamedTuple):
    """A document of a split: where it stands in which document of the source."""

    name: str
    group: str
    document: int
    where: slice


def pieces(name: str, text: bytes, validation: float, test: float, piece: int) -> list[Piece]:
    """A document, cut: its pieces in their order, which together are all of it.

    There are as many slots as give test pieces of `piece` bytes (validation pieces where nothing is
    for testing), and one at least: so a document too short for that has one piece of each kind.
    Where test pieces lie does not depend on `validation`, nor on the tokenizer.
    """
    size = len(text)
    slots = max(1, int(size * (test or validation) / piece))
    held: list[Piece] = []
    for slot in range(slots):
        first, last = size * slot // slots, size * (slot + 1) // slots
        here = []
        for split, share in (("test", test), ("validation", validation)):
            # the longest stretch of the slot that is free: all, or what lies beside the test piece
            a, b = first, last
            if here:
                a, b = max((first, here[0].begin), (here[0].end, last), key=lambda s: s[1] - s[0])
            length = int((last - first) * share)
            begin = a + int(point(f"{name}\0{slot}\0{split}") * (b - a - length + 1))
            here.append(Piece(begin, begin + length, split))
        held += sorted(here)
    found, at = [], 0
    for begin, end, split in (*held, Piece(size, size, "train")):
        begin, end = boundary(text, begin), boundary(text, end)
        found += [Piece(at, begin, "train"), Piece(begin, end, split)]
        at = end
    return [piece for piece in found if piece.begin < piece.end]


def boundary(text: bytes, at: int) -> int:
    """Where a line begins within LINE bytes from `at` on; otherwise where a character does."""
    if at in (0, len(text)):
        return at
    if end := text.find(b"\n", at - 1, at + LINE) + 1:
        return end
    # bytes 10xxxxxx go on with a character, of which UTF-8 has three at most
    following = (i for i in range(at, min(at + 3, len(text))) if text[i] & 0xC0 != 0x80)
    return next(following, min(at + 3, len(text)))


def split_within(
    documents: Documents, validation: float, test: float, piece: int
) -> dict[str, Documents]:
    """The documents of each split, in their stable order; pieces are named book.txt[from:to].

    Documents that belong together, near copies or parts of one text, are not cut: what is held out
    of one would be trained on in another. They go to one split whole, by their group's name.
    """

    @lru_cache(maxsize=1)  # the pieces of a document are mostly read one after the other
    def read(index: int) -> bytes:
        return documents[index].text

    members = Counter(documents.groups)
    found: dict[str, list[Part]] = {split: [] for split in SPLITS}
    for index, (name, group) in enumerate(zip(documents.names, documents.groups, strict=True)):
        if members[group] > 1:
            whole = Part(name, group, index, slice(None))
            found[split_of(group, validation, test)].append(whole)
            continue
        for begin, end, split in pieces(name, read(index), validation, test, piece):
            title = f"{name}[{begin}:{end}]"
            found[split].append(Part(title, title, index, slice(begin, end)))

    def of(parts: list[Part]) -> Documents:
        def marks(index: int) -> Marks:
            part = parts[index]
            size = len(read(part.document)) if documents.marked else 0
            return documents.marks(part.document).within(*part.where.indices(size)[:2])

        return Documents(
            [part.name for part in parts],
            lambda i: read(parts[i].document)[parts[i].where],
            [part.group for part in parts],
            marks if documents.marked else None,
            documents.notes,
        )

    return {split: of(parts) for split, parts in found.items()}
