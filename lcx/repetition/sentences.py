"""A text's sentences and lines, as they are compared: without case, white space as one space."""

import re
from collections.abc import Iterator

_END = (
    r"(?:(?<!\b[Mm]r)(?<!\b[Mm]s)(?<!\b[Dd]r)(?<!\b[Ss]t)(?<!\b[Mm]rs)\.|[!?…])[.!?…]*[\"'”’)\]]*(?=\s|$)"
    r"|[。！？]+[」』”’]*"
)
_SENTENCE = re.compile(rf"\S.*?(?:{_END}|(?=\n\s*\n)|\Z)", re.DOTALL)


def sentences(text: str) -> list[str]:
    """What ends in a full stop, a question or an exclamation mark, or before an empty line.

    A sentence may go on over lines: text is wrapped. By rules, not by a model: Mr. and a few more
    end none, other abbreviations do.
    """
    return [plain(found.group()) for found in spans(text)]


def lines(text: str) -> list[str]:
    """Those that are not blank: empty lines between paragraphs repeat nothing."""
    return [plain(line) for line in text.splitlines() if line.strip()]


def spans(text: str) -> Iterator[re.Match[str]]:
    """Where the sentences stand in the text."""
    return _SENTENCE.finditer(text)


def plain(text: str) -> str:
    """What is compared."""
    return " ".join(text.split()).casefold()
