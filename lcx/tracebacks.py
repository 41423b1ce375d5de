"""Where an error stands in the user's own files: the lines that are of no library."""

import sys
import sysconfig
import traceback
from pathlib import Path

_FOLDERS = ("stdlib", "platstdlib", "purelib", "platlib")
LIBRARIES = {
    Path(place).resolve()
    for place in (*map(sysconfig.get_path, _FOLDERS), Path(__file__).parent, sys.argv[0])
}
"""Python's own, those that are installed, lcx, and the command that started.

Not Python's prefix: a user's files may lie in the folder of their virtual environment.
"""


def own_lines(error: BaseException) -> list[traceback.FrameSummary]:
    """The lines of the traceback that stand in files of the user's, from the outermost on."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if is_own(frame.filename)]


def shown(error: BaseException) -> str | None:
    """The user's lines and the error, as Python shows them; None where none of them is the user's.

    A syntax error stands in the file that could not be read.
    """
    lines = own_lines(error)
    broken = isinstance(error, SyntaxError) and is_own(error.filename or "")
    if not lines and not broken:
        return None
    text = traceback.format_list(lines) + traceback.format_exception_only(error)
    return "".join(text).rstrip()


def is_own(name: str) -> bool:
    """Whether a file is the user's: of no library, and not lcx's."""
    path = Path(name)
    return path.is_file() and not any(path.resolve().is_relative_to(f) for f in LIBRARIES)
