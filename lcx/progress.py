"""The progress bar of all long work."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress(console: Console) -> Progress:
    """A bar whose tasks have a description, a total and a `note`."""
    return Progress(
        TextColumn("{task.description:<24.24}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
