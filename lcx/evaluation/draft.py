"""An evaluation that is under way: its excerpts, and what they scored, kept as they come."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from lcx.parallel.processes import barrier, is_primary
from lcx.protocols import Excerpt


class Job(NamedTuple):
    """One excerpt of one document."""

    number: int
    document: int
    excerpt: Excerpt


Scored = dict[str, Any]
"""What one excerpt scored, or what was written in its place.

    job        its number among the evaluation's excerpts
    document   its document's number
    scores     a dict for each score it asks for: context, reach, tokens, bytes, and sums
or
    written    the tokens of each text that was written after its prompt
"""


class Draft:
    """A file with a line for each excerpt, or nothing where `path` is None. A context manager.

    Of several processes the first writes it, and all read it before it does.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self.before: list[Scored] = []
        """What an earlier start has left; a last line that was cut short is not."""

    def __enter__(self) -> "Draft":
        if self._path is not None and self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    self.before.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        barrier("the draft is read")
        if self._path is None or not is_primary():
            self._file = Path(os.devnull).open("w")
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = "".join(json.dumps(found) + "\n" for found in self.before)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.write_text(whole)
        fresh.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, found: Scored) -> None:
        """Keep what one more excerpt scored."""
        self._file.write(json.dumps(found) + "\n")
