"""The user's own code that experiments are made of: what it says, and a copy of it.

A class of one's own is told by the text of its definition and of all that this refers to in files
of one's own: functions, constants, base classes, other modules. Layout, comments and docstrings do
not count.
"""

import ast
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from lcx import spec
from lcx.cache import Digest
from lcx.tracebacks import is_own


@dataclass(frozen=True)
class OwnCode:
    """What was read when an experiment file was loaded."""

    files: Mapping[str, str] = field(default_factory=dict)
    """The text of the experiment file and of the modules beside it that it imports, by path."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """A digest of the definition of each class of the experiments that is not lcx's, by name."""

    def of(self, made: Any) -> dict[str, str]:
        """The digests of those classes that a spec is made of."""
        return {n: d for n, d in self.classes.items() if n in spec.types_of(made)}


def is_own_class(cls: type) -> bool:
    """Whether a class is not lcx's."""
    return cls.__module__.split(".")[0] != "lcx"


def read_code(path: Path, made: Iterable[Any]) -> OwnCode:
    """The code of an experiment file that was just loaded, and gave these specs."""
    folder, files = path.resolve().parent, {path.name: path.read_text()}
    for module in list(sys.modules.values()):
        file = _file(module)
        if file is not None and file.is_relative_to(folder) and is_own(str(file)):
            files[file.relative_to(folder).as_posix()] = file.read_text()
    classes = {name: c for one in made for name, c in spec.types_of(one).items()}
    own = {name: definition(c) for name, c in sorted(classes.items()) if is_own_class(c)}
    return OwnCode(files, own)


def definition(cls: type) -> str:
    """A digest of a class's definition and of all that it refers to in one's own files."""
    found: dict[tuple[str, str], str] = {}
    _collect(sys.modules[cls.__module__], cls.__qualname__.split(".")[0], found)
    return str(Digest(*(part for key in sorted(found) for part in (*key, found[key]))))


def _collect(module: ModuleType, name: str, found: dict[tuple[str, str], str]) -> None:
    """Add the statements that define a name in a module, and those of all names in them."""
    key = (module.__name__, name)
    if key in found:
        return
    statements = _defined(module).get(name, [])
    found[key] = "\n".join(ast.unparse(_Undocumented().visit(deepcopy(s))) for s in statements)
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                _collect(module, node.id, found)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                _follow(module, node, name, found)


def _follow(
    module: ModuleType,
    node: ast.ImportFrom | ast.Import,
    name: str,
    found: dict[tuple[str, str], str],
) -> None:
    """Collect what an import takes from modules of one's own under a name."""
    for alias in node.names:
        if name not in (alias.asname or alias.name.split(".")[0], "*"):
            continue
        if isinstance(node, ast.ImportFrom):
            source = f"{'.' * node.level}{node.module or ''}"
            if node.level:  # relative to the package
                package = (module.__package__ or "").split(".")
                above = package[: len(package) - node.level + 1]
                source = ".".join([*above, *filter(None, [node.module])])
            inner = sys.modules.get(f"{source}.{alias.name}")
            whole, wanted = inner or sys.modules.get(source), alias.name
        else:
            inner = whole = sys.modules.get(alias.name)
            wanted = "*"
        if whole is None or not is_own(str(_file(whole) or "")):
            continue
        for each in [*_defined(whole)] if inner or wanted == "*" else [wanted]:
            _collect(whole, each, found)


class _Undocumented(ast.NodeTransformer):
    """Takes docstrings, and strings that stand after fields, out of a statement."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        said = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if said else node


_STATEMENTS: dict[tuple[str, int], dict[str, list[ast.stmt]]] = {}


def _defined(module: ModuleType) -> dict[str, list[ast.stmt]]:
    """The statements at the top of a module that give each of its names a value."""
    file = _file(module)
    if file is None or not file.is_file():
        return {}
    key = (str(file), file.stat().st_mtime_ns)
    if key not in _STATEMENTS:
        names: dict[str, list[ast.stmt]] = {}
        for statement in ast.parse(file.read_text()).body:
            for name in _names(statement):
                names.setdefault(name, []).append(statement)
        _STATEMENTS[key] = names
    return _STATEMENTS[key]


def _names(statement: ast.stmt) -> set[str]:
    """The names that a statement gives values, at the top of its module."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {a.asname or a.name.split(".")[0] for a in statement.names}
    inner = [n for n in ast.iter_child_nodes(statement) if isinstance(n, ast.stmt)]
    stored = {
        n.id
        for n in ast.walk(statement)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    return stored.union(*map(_names, inner))


def _file(module: object) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if isinstance(name, str) else None
