"""Which documents are measured on, and which parts of them are scored."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from lcx import cache, spec
from lcx.data.documents import Documents, Marks
from lcx.data.duplicates import hashes, stand_in
from lcx.data.encoding import starts_of
from lcx.data.packing import Tokens
from lcx.data.task import Targets
from lcx.data.tokenizers import Tokenizer
from lcx.protocols import EvaluationProtocol, SameTargets, Text
from lcx.protocols.same_targets import covering

COPIED = 64
"""Bytes: a span of which so many in a row stand elsewhere word for word is left out. To a shorter
span the bytes before it are added."""
TRIES = 4
"""So many times as many places are looked at as spans are wanted of a document."""


class TooShortError(ValueError):
    """No document has room for what a protocol measures on."""


def choose(
    protocol: EvaluationProtocol, documents: Documents, train: Documents, tokenizer: Tokenizer
) -> Targets:
    """The documents of a split, and their spans, by the protocol's seed: one of each group.

    Raises TooShortError where none is long enough, ValueError where no span is left.
    """
    tokens = Tokens.of(documents, tokenizer)
    lengths = np.diff(tokens.bounds) - 1
    longest = int(lengths.argmax())
    if protocol.length > lengths[longest]:
        raise TooShortError(
            f"no document of split {protocol.split!r} has {protocol.length} tokens; the longest of "
            f"its {len(documents)}, {documents.names[longest]}, has {lengths[longest]}"
        )
    order = np.random.default_rng(protocol.seed).permutation(len(documents))
    groups: set[str] = set()
    chosen = []
    for i in order.tolist():
        if (
            lengths[i] >= protocol.length
            and documents.groups[i] not in groups
            and _counts(protocol, tokens.scored_of(i))
        ):
            groups.add(documents.groups[i])
            chosen.append(i)

    def text(i: int, spans: list[list[int]]) -> Text:
        ids = tokens.document(i)
        places, scored = tuple((a, b) for a, b in spans), tokens.scored_of(i)
        return Text(documents.names[i], ids, starts_of(ids, tokenizer), places, scored)

    if not isinstance(protocol, SameTargets):
        texts = [text(i, []) for i in sorted(chosen[: protocol.documents])]
        if tokens.scored is not None:
            _check_points(protocol, texts, tokenizer.bos)
        return Targets(texts, {})

    def make(path: Path) -> None:
        places = Places(protocol, documents, train, tokens, tokenizer)
        path.write_text(json.dumps([places.of(chosen), places.left_out]))

    said = json.dumps(spec.encode(protocol), sort_keys=True)
    key = cache.Digest(said, documents.fingerprint, train.fingerprint, tokenizer.fingerprint)
    key.add(*documents.groups)
    path = cache.once(cache.folder() / "spans" / f"{key}.json", make)
    spans, left_out = json.loads(path.read_text())
    if not spans:
        said = _nothing(protocol, left_out, documents.marked)
        raise (ValueError if left_out["looked at"] else TooShortError)(said)
    return Targets([text(int(i), spans[i]) for i in sorted(spans, key=int)], left_out)


def _counts(protocol: EvaluationProtocol, scored: Bool[np.ndarray, " n"] | None) -> bool:
    """Whether anything that may be scored lies where the protocol looks in a document.

    Spans are looked for by themselves, and what is written after a prompt needs no targets.
    """
    if scored is None or isinstance(protocol, SameTargets) or protocol.writes is not None:
        return True
    return bool(scored[: protocol.length].any())


def _check_points(protocol: EvaluationProtocol, texts: list[Text], bos: int) -> None:
    """Raise ValueError where a point would have no target that may be scored."""
    found = {
        s.context for t in texts for excerpt in protocol.excerpts(t, bos) for s in excerpt.scores
    }
    if missing := [c for c in protocol.contexts if c not in found]:
        raise ValueError(
            "no token that is scored (of conversations the answers are) lies where "
            f"{type(protocol).__name__} looks at the context {missing[0]}, in {len(texts)} "
            f"documents of split {protocol.split!r}: take longer contexts, or SameTargets"
        )


def _nothing(protocol: SameTargets, left_out: dict[str, int], marked: bool) -> str:
    looked = left_out["looked at"]
    if not looked:
        before = "" if protocol.before is None else f", {protocol.before} bytes (before)"
        return (
            f"no document of split {protocol.split!r} has room for a span of {protocol.span} bytes"
            f"{' in what is scored of it, an answer say,' * marked} after the longest context, "
            f"{protocol.contexts[-1]} {protocol.unit}{before}: take shorter contexts or spans, or "
            "hold out more"
        )
    return (
        f"all {looked} spans of split {protocol.split!r} that were looked at stand elsewhere too "
        f"({left_out['in training']} in training, {left_out['twice']} among the targets): the "
        "documents are copies of each other"
    )


class Places:
    """Where spans may lie. A place is the same for every tokenizer, if there is room before it."""

    def __init__(
        self,
        protocol: SameTargets,
        documents: Documents,
        train: Documents,
        tokens: Tokens,
        tokenizer: Tokenizer,
    ):
        self._protocol, self._documents, self._train = protocol, documents, train
        self._tokens, self._tokenizer = tokens, tokenizer
        self._taken: set[int] = set()  # hashes of all stretches of COPIED bytes in spans so far
        self.left_out = {"looked at": 0, "in training": 0, "twice": 0}

    def of(self, order: list[int]) -> dict[int, list[tuple[int, int]]]:
        """Spans by document, of as many documents in this order as the protocol wants."""
        wanted = self._protocol.documents or len(order)
        found: dict[int, list[tuple[int, int]]] = {}
        for at in range(0, len(order), 2 * wanted):  # the training split is read once for many
            block = order[at : at + 2 * wanted]
            candidates = [(i, place) for i in block for place in self._candidates(i)]
            if not candidates:
                continue
            texts = {i: self._documents[i].text for i in block}
            stretches = [
                hashes(texts[i][max(0, min(first, last - COPIED)) : last], COPIED)
                for i, (first, last) in candidates
            ]
            copied = stand_in(
                np.concatenate([np.zeros(0, np.uint64), *stretches]),
                (document.text for document in self._train),
                COPIED,
            )
            ends = np.cumsum([len(s) for s in stretches])[:-1]
            for (i, place), own, copies in zip(
                candidates, stretches, np.split(copied, ends), strict=True
            ):
                spans = found.get(i, [])
                if len(spans) == self._protocol.spans or (not spans and len(found) == wanted):
                    continue
                if self._free(own, bool(copies.any())):
                    found[i] = sorted([*spans, place])
            if len(found) == wanted:
                break
        return found

    def _free(self, stretches: np.ndarray, in_training: bool) -> bool:
        self.left_out["looked at"] += 1
        twice = not self._taken.isdisjoint(stretches.tolist())
        if in_training or twice:
            self.left_out["in training" if in_training else "twice"] += 1
            return False
        self._taken.update(stretches.tolist())
        return True

    def _candidates(self, i: int) -> list[tuple[int, int]]:
        """Places in a document: on a grid of spans, which begins and is gone through at random."""
        protocol, span = self._protocol, self._protocol.span
        ids = self._tokens.document(i)
        starts = starts_of(ids, self._tokenizer)
        size = len(self._documents[i].text)
        rng = np.random.default_rng((protocol.seed, i))
        if not self._documents.marked:
            grid = np.arange(rng.integers(span), size - span + 1, span)
        else:
            rooms = [(a, b - a - span + 1) for a, b in _plain(self._documents.marks(i), size)]
            grids = [
                np.arange(a + rng.integers(min(span, room)), a + room, span)
                for a, room in rooms
                if room > 0
            ]
            grid = np.concatenate([np.zeros(0, np.int64), *grids])
        rng.shuffle(grid)
        longest = protocol.contexts[-1]
        if protocol.before is not None:
            least = protocol.before
        elif protocol.unit == "bytes":
            least = longest
        else:
            least = int(starts[longest]) if len(starts) > longest else size
        places = grid[grid >= least][: TRIES * protocol.spans].tolist()
        if protocol.unit == "tokens":
            for first in places:
                if (seen := covering(starts, first, first + span)[0]) < longest:
                    raise ValueError(
                        f"SameTargets: before={protocol.before} bytes of "
                        f"{self._documents.names[i]} are {seen} tokens, fewer than the longest "
                        f"context, {longest}; take a larger `before`, or count bytes (unit)"
                    )
        return [(first, first + span) for first in places]


def _plain(marks: Marks, size: int) -> Iterator[tuple[int, int]]:
    """Bytes [first, last) that are scored, between special tokens, which are no text."""
    for first, last in ((0, size),) if marks.scored is None else marks.scored:
        at = first
        for a, b in marks.special:
            if first <= a and b <= last:
                yield at, a
                at = b
        yield at, last
