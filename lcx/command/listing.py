"""`lcx list`: what there is, a line each.

The tables are looked up once for each state of lcx's own files and kept; experiment files are read,
not run.
"""

import ast
import json
from pathlib import Path

from rich.table import Table

import lcx
from lcx import cache
from lcx.progress import plain_console


def print_listing(folder: Path) -> None:
    """Print the entries of all tables, and the experiment files of a folder."""
    console = plain_console()
    for title, rows in _tables().items():
        console.print(_listing(title, rows))
    found = {}
    for path in sorted(folder.glob("*.py")):
        if (said := _question(path)) is not None:
            found[str(path)] = said
    console.print(_listing("experiments", found or {"none": f"no experiment file in {folder}/"}))


def _tables() -> dict[str, dict[str, str]]:
    files = sorted(Path(lcx.__file__).parent.rglob("*.py"))
    state = cache.Digest(*(f"{path} {path.stat().st_mtime_ns}" for path in files))
    path = cache.folder() / "listing" / f"{state}.json"
    try:
        return json.loads(cache.once(path, _write).read_text())
    except OSError:
        return _look()


def _write(path: Path) -> None:
    path.write_text(json.dumps(_look()))


def _look() -> dict[str, dict[str, str]]:
    from lcx.experiment import TABLES

    return {
        title: {name: (cls.__doc__ or "").strip().split("\n")[0] for name, cls in table.items()}
        for title, table in TABLES.items()
    }


def _question(path: Path) -> str | None:
    """The first line of an experiment file's docstring; None for another Python file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot be read: {error}"
    if not any(isinstance(s, ast.FunctionDef) and s.name == "experiments" for s in tree.body):
        return None  # a module that experiment files share
    return (ast.get_docstring(tree) or "").split("\n")[0]


def _listing(title: str, rows: dict[str, str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, line in rows.items():
        table.add_row(name, line)
    return table
