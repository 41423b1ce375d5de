"""Relative paths in specs: those of an experiment file start in the folder that it lies in."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

FilePath = Annotated[str, "path"]
"""A field that holds the path of a file or a folder; `~` is the home folder."""
GlobPath = Annotated[str, "glob"]
"""A field that holds a pattern of paths, as Python's `glob` has them."""

_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def taken_from(folder: Path) -> Iterator[None]:
    """While this is entered, `resolved` takes relative paths from a folder."""
    token = _FOLDER.set(folder.resolve())
    try:
        yield
    finally:
        _FOLDER.reset(token)


def resolved(path: str) -> Path:
    """An absolute path, from the working folder unless `taken_from` says another."""
    return (_FOLDER.get() or Path.cwd()) / Path(path).expanduser()


def resolved_glob(pattern: str) -> str:
    """An absolute pattern; the folder's own name is text, whatever signs are in it."""
    folder = glob.escape(str(_FOLDER.get() or Path.cwd()))
    return str(Path(folder) / Path(pattern).expanduser())


def absolute(made: Any) -> Any:
    """The same spec with absolute paths in its fields, here and deeper."""
    if isinstance(made, tuple):
        items = tuple(map(absolute, made))
        return made if items == made else items
    if not is_dataclass(made) or isinstance(made, type):
        return made
    hints = get_type_hints(type(made), include_extras=True)
    changed = {}
    for field in fields(made):
        old = getattr(made, field.name)
        hint = hints[field.name]
        if old is None:
            continue
        if hint in (FilePath, FilePath | None):
            new = str(resolved(old))
        elif hint == GlobPath:
            new = resolved_glob(old)
        else:
            new = absolute(old)
        if new != old:
            changed[field.name] = new
    return replace(made, **changed) if changed else made
