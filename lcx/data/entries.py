"""The entries of files of JSON and of JSON Lines, each with where it stands."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lcx.data.sources import TextFiles
from lcx.data.turns import OddError
from lcx.progress import counted


class Entry(NamedTuple):
    """An entry of one of several files, and what was made of it."""

    file: str
    number: int
    """In its file, from 0."""
    given: Any
    made: Any


def made_of_entries(
    source: Any, what: str, make: Callable[[Any], Any], left_out: Counter[str]
) -> Iterator[Entry]:
    """What `make` makes of each entry of the files that `source.glob` matches; shows its progress.

    `source.odd` says what is done where `make` raises OddError: "skip" counts it in `left_out`, by
    kind. Raises ValueError, with the source, the file and the place, for all else that `make`
    raises.
    """
    for file in TextFiles(source.glob).documents():
        try:
            found = [*entries(file.text, file.name, what)]
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        for number, (place, entry) in enumerate(counted(found, len(found), "rendering")):
            try:
                made = make(entry)
            except ValueError as error:
                if isinstance(error, OddError) and source.odd == "skip":
                    left_out[error.kind] += 1
                    continue
                ways = f"; odd={'skip'!r} leaves such out" * isinstance(error, OddError)
                raise ValueError(f"{source}: {file.name}, {place}: {error}{ways}") from None
            yield Entry(file.name, number, entry, made)


def entries(data: bytes, name: str, what: str) -> Iterator[tuple[str, Any]]:
    """The entries of a file, each after its place: "line 3", or "entry 3" of a list.

    what: one of them is, for errors: "conversation". Raises ValueError, with the file's name and
    the line, for what is no JSON.
    """
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}, line {line}: not {encoding}: {error}") from None
    if text.lstrip().startswith("["):
        for number, entry in enumerate(_json(text, name, 1, what), 1):
            yield f"entry {number}", entry
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _json(line, name, number, what)


def _json(text: str, name: str, first_line: int, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(
            f"{name}, line {line}: no JSON: {error.msg} (column {error.colno}). Expected is a list "
            f"of {what}s, or one {what} in each line"
        ) from None
