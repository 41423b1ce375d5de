"""The terminal and the progress bar of all long work."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.cells import set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Stream:
    """sys.stdout or sys.stderr, which may lose its reader: a terminal is closed, `tee` has ended.

    What is under way goes on in silence.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(sys, self._name), attribute)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            getattr(sys, self._name).write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            getattr(sys, self._name).flush()


def plain_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A terminal that prints text as it stands: a name or a folder may hold `[bold]` or `:key:`."""
    stream: Any = Stream("stderr" if stderr else "stdout")
    return Console(file=stream, quiet=quiet, markup=False, emoji=False, highlight=False)


T = TypeVar("T")

PATIENCE = 5.0
"""Seconds: shorter work shows no bar."""


def progress(console: Console) -> Progress:
    """A bar whose tasks have a description, a total and a `note`."""
    return Progress(
        _Description(),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


class _Description(ProgressColumn):
    """What a task is called, in as many columns for each, however wide its characters are."""

    def render(self, task: Task) -> Text:
        return Text(set_cell_size(task.description, 24))


def counted(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items one by one; once they have taken PATIENCE seconds, under a bar in the terminal."""
    console = plain_console(stderr=True)
    bar = progress(console)
    task = bar.add_task(what, total=total, note="")
    begun = time.monotonic()
    try:
        for item in items:
            yield item
            bar.advance(task)
            late = time.monotonic() - begun >= PATIENCE
            if late and console.is_terminal and not bar.live.is_started:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()


def warner(console: Console) -> Callable[[str], None]:
    """What prints a warning."""
    return lambda message: console.print(Text.assemble(("warning:", "yellow"), f" {message}"))
