"""What is said of an error: a clear line where the user can mend it, or the user's own lines."""

import os
import sys

from rich.console import Console
from rich.markup import escape

from lcx.parallel.preemption import Preempted
from lcx.parallel.processes import JoinError, is_primary, leave
from lcx.progress import plain_console
from lcx.tracebacks import own_lines, shown
from lcx.training.checkpoint import CorruptCheckpointError
from lcx.training.log import NonFiniteLossError

ERRORS = (ValueError, OSError, CorruptCheckpointError, NonFiniteLossError, JoinError)
"""What the user can mend, or has to know."""


def explained(error: Exception) -> bool:
    """Say it on stderr, in a line or in the user's lines.

    False, and nothing is said, for lcx's own errors, which need the whole traceback, and for all
    with LCX_TRACEBACK set.
    """
    text = None if os.environ.get("LCX_TRACEBACK") else _told(error)
    if text is not None:
        Console(stderr=True, soft_wrap=True, emoji=False).print(text, highlight=False)
    return text is not None


def end(error: Exception) -> bool:
    """End the command as the error asks; False for one that Python should show."""
    if isinstance(error, Preempted):
        plain_console(stderr=True, quiet=not is_primary()).print(str(error), soft_wrap=True)
        sys.exit(error.code)
    if explained(error):
        leave(2 if isinstance(error, ERRORS) else 1)
    return False


def first_line(error: Exception) -> str:
    """The error in a line of a table."""
    said = str(error).strip().split("\n")[0][:300]
    return said if isinstance(error, ERRORS) else f"{type(error).__name__}: {said}"


def _told(error: Exception) -> str | None:
    if isinstance(error, ERRORS):
        lines = own_lines(error)
        where = f" ({lines[-1].filename}, line {lines[-1].lineno})" if lines else ""
        return f"[bold red]error:[/] {escape(f'{error}{where}')}"
    if (text := shown(error)) is None:
        return None
    return f"{escape(text)}\n[dim]LCX_TRACEBACK=1 shows the lines of lcx and JAX, too[/]"
