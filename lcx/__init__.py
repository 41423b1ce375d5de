"""lcx: what a language model gains, and pays, as its context grows.

What experiments and notebooks need is here by name: `lcx.LM`, `lcx.RoPE`, `lcx.open_run`. The names
stand in `__init__.pyi`, where editors look for them, too. Each is imported when it is first asked
for, since the `lcx` command has to set up its process before jax is imported.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOME = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lcx' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
