"""docs/reference.md: all that experiments are put together from, by its own docstrings."""

import ast
import inspect
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from textwrap import dedent
from typing import Any

from lcx import spec
from lcx.experiment import PARTS, TABLES

HEAD = """# Reference

What experiments are put together from, with defaults and docstrings. All of it is in `import lcx`
and can be written in `--set`. `lcx list --markdown` makes this page.
"""


def reference() -> str:
    """The page, in Markdown."""
    sections = {"experiments": PARTS, **TABLES}
    return "\n".join([HEAD, *(_section(title, table) for title, table in sections.items())])


def _section(title: str, table: dict[str, type]) -> str:
    entries = "\n".join(_entry(name, cls) for name, cls in table.items())
    return f"## {title[:1].upper()}{title[1:]}\n\n{entries}"


def _entry(name: str, cls: type) -> str:
    settings = ", ".join(map(_setting, fields(cls))) if is_dataclass(cls) else ""
    words = inspect.cleandoc(cls.__doc__ or "")
    said = "".join(f"- `{field}`: {text}\n" for field, text in _field_words(cls).items())
    return f"### {name}\n\n```text\n{name}({settings})\n```\n\n{words}\n" + f"\n{said}" * bool(said)


def _field_words(cls: type) -> dict[str, str]:
    """The string after each field, which Python itself does not keep; inherited fields first."""
    found = {}
    for base in reversed([b for b in cls.__mro__ if is_dataclass(b)]):
        (body,) = ast.parse(dedent(inspect.getsource(base))).body
        for field, after in pairwise(getattr(body, "body", ())):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                words = getattr(after.value, "value", None)
                if isinstance(words, str) and isinstance(field.target, ast.Name):
                    found[field.target.id] = " ".join(words.split())
    return found


def _setting(field: Field) -> str:
    if field.default is MISSING:
        return field.name
    return f"{field.name}={_value(field.default)}"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))}{',' * (len(value) == 1)})"
    return spec.describe(value) if is_dataclass(value) else repr(value)
