"""The entries of files of JSON and of JSON Lines, each with where it stands."""

import json
from collections.abc import Iterator
from typing import Any


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
