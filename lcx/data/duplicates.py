"""Text that stands in more than one place: word for word, and nearly.

All stretches of n bytes of a text are hashed at once, as the values of a polynomial in an odd base
modulo 2^64 (Karp and Rabin 1987): prefix sums give each stretch up to a power of the base, which
has an inverse.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64

from lcx import cache
from lcx.data.documents import Documents
from lcx.progress import counted

Hashes = UInt64[np.ndarray, "_"]

BASE = np.uint64(0x9E3779B97F4A7C15)
INVERSE = np.uint64(pow(int(BASE), -1, 2**64))

SHINGLE = 32
"""Bytes: two documents are as alike as the sets of their stretches of this length are."""
KEPT = 8
"""One stretch in so many, chosen by its hash, stands for all."""
PERMUTATIONS = 64
"""Of MinHash: the similarity is known to within about 0.06."""


def hashes(text: bytes, n: int) -> Hashes:
    """Of each stretch of n bytes, by where it begins; none where the text is shorter."""
    if len(text) < n:
        return np.zeros(0, np.uint64)
    terms = np.frombuffer(text, np.uint8).astype(np.uint64) + np.uint64(1)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms * _powers(BASE, len(text)))])
    found = (sums[n:] - sums[:-n]) * _powers(INVERSE, len(text) - n + 1)
    # what differs high up is mixed into the low bits, by which one in KEPT is chosen
    return (found ^ (found >> np.uint64(32))) * BASE


def _powers(base: np.uint64, n: int) -> Hashes:
    """base^0, base^1, ... base^(n-1), modulo 2^64."""
    return _first_powers(base, max(n - 1, 0).bit_length())[:n]


@lru_cache(maxsize=8)
def _first_powers(base: np.uint64, bits: int) -> Hashes:
    """The first 2^bits of them: one table serves all texts up to that length."""
    powers = np.full(2**bits, base)
    powers[:1] = 1
    return np.cumprod(powers)


def stand_in(wanted: Hashes, texts: Iterable[bytes], n: int) -> Bool[np.ndarray, "_"]:
    """Which of the wanted hashes are those of a stretch of n bytes of some text."""
    ordered, back = np.unique(wanted, return_inverse=True)
    standing = np.zeros(len(ordered), bool)
    if not len(ordered):
        return standing
    likely = np.zeros(2**20, bool)  # by the first 20 bits: most stretches need no search
    likely[ordered >> np.uint64(44)] = True
    for text in texts:
        found = hashes(text, n)
        found = found[likely[found >> np.uint64(44)]]
        place = np.minimum(np.searchsorted(ordered, found), len(ordered) - 1)
        standing[place[ordered[place] == found]] = True
    return standing[back]


def with_near_copies(documents: Documents, threshold: float) -> Documents:
    """The documents, those that are nearly copies of each other in one group.

    Two are where the Jaccard similarity of their stretches of SHINGLE bytes is at least about the
    threshold, by MinHash (Broder 1997) with locality-sensitive hashing, as `datasketch` has them;
    and so are two that are like a third. Found once per set of documents, and kept in the cache.
    """

    if len(documents) < 2:
        return documents

    def make(path: Path) -> None:
        path.write_text(json.dumps(_near_copies(documents, threshold)))

    key = cache.Digest("alike", str(threshold), documents.fingerprint, *documents.groups)
    path = cache.once(cache.folder() / "alike" / f"{key}.json", make)
    return documents.grouped(json.loads(path.read_text()))


def _near_copies(documents: Documents, threshold: float) -> list[str]:
    """For each document the group of the first one that it belongs together with."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while parent.get(group, group) != group:
            group = parent[group]
        return group

    empty = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    order: dict[str, int] = {}
    sketches: dict[int, MinHash] = {}
    watched = counted(documents, len(documents), "looking for copies")
    for number, (document, group) in enumerate(zip(watched, documents.groups, strict=True)):
        order.setdefault(group, number)
        found = hashes(document.text, SHINGLE)
        kept = np.unique(found[found % np.uint64(KEPT) == 0])
        if not len(kept):
            continue
        sketch = empty.copy()
        sketch.update_batch((kept >> np.uint64(32)).tolist())
        near: list[Any] = index.query(sketch)  # some of them only nearly
        similar = [other for other in near if sketches[other].jaccard(sketch) >= threshold]
        roots = {root(documents.groups[other]) for other in similar} | {root(group)}
        first = min(roots, key=order.__getitem__)
        parent |= dict.fromkeys(roots, first)
        index.insert(number, sketch)
        sketches[number] = sketch
    return [root(group) for group in documents.groups]
