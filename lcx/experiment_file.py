"""Experiment files: Python files whose function `experiments()` returns named `Experiment`s."""

import difflib
import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from lcx import spec
from lcx.data import Data, TokenizerFile
from lcx.experiment import Experiment, Experiments, Train
from lcx.huggingface import Pretrained
from lcx.own_code import OwnCode, read_code
from lcx.paths import absolute, taken_from
from lcx.protocols import SameTargets
from lcx.tracebacks import is_own
from lcx.types import Policy

RESERVED = "report"
"""The folder of the pages, beside the runs."""

_SIBLINGS: set[str] = set()
"""Modules that lie beside an experiment file which was run, by name."""


class NoExperimentsError(ValueError):
    """A Python file without a function `experiments()`."""


@dataclass(frozen=True)
class ExperimentFile:
    """Experiments, and the file that they come from."""

    path: Path
    question: str
    """Its docstring."""
    experiments: Experiments
    code: OwnCode
    changes: dict[str, list[str]]
    """The assignments that each variant has been changed by already (`--set`)."""


def load(path: Path) -> ExperimentFile:
    """Run an experiment file.

    It may import the modules beside it, and its relative paths start in its folder. Raises
    FileNotFoundError, NoExperimentsError, or ValueError for what it returns.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise FileNotFoundError(f"no experiment file {path}{hint}")
    with taken_from(path.parent):
        return _made(path, run_file(path))


def _made(path: Path, module: ModuleType) -> ExperimentFile:
    make = getattr(module, "experiments", None)
    if not callable(make):
        raise NoExperimentsError(
            f"{path} has no function experiments() that returns named Experiments"
        )
    made = make()
    if not (isinstance(made, dict) and made):
        raise ValueError(f"{path}: experiments() must return a dict of Experiments by name")
    for name, experiment in made.items():
        if not isinstance(experiment, Experiment):
            raise ValueError(f"{path}: {name!r} is a {type(experiment).__name__}, no Experiment")
        check_name(name, path)
        spec.check(experiment, name)
    made = {name: absolute(experiment) for name, experiment in made.items()}
    code = read_code(path, made.values())
    return ExperimentFile(path, (module.__doc__ or "").strip(), made, code, {})


def open_published(folder: Path) -> ExperimentFile:
    """The one experiment of evaluating a published model as it is, with its own tokenizer.

    Contexts double up to the length of its training; parameters are kept in the dtype that the
    config says, and computed with in fp32; texts are the Python standard library's, unless `--set`
    says others. Raises ValueError where the folder holds no such model.
    """
    weights = Pretrained(str(folder.resolve()))
    model = replace(weights.model(), policy=Policy(params=weights.dtype))
    length = weights.trained_length or 2048
    experiment = Experiment(
        model,
        Data(tokenizer=TokenizerFile(str(folder.resolve() / "tokenizer.json"))),
        Train(length=length, batch=1, steps=0),
        SameTargets(tuple(dict.fromkeys(max(1, length >> n) for n in range(5, -1, -1)))),
        init_from=weights,
    )
    name = folder.resolve().name.translate(dict.fromkeys(map(ord, ". ,\t\n"), "_"))
    path = Path(f"{name}.py")
    check_name(name, path)
    question = f"How well does {folder.resolve().name} read, from contexts of every length?"
    return ExperimentFile(path, question, {name: experiment}, OwnCode({}, {}), {})


def check_name(name: object, path: Path) -> None:
    """Raise ValueError where a variant's name cannot be that of a folder."""
    if not isinstance(name, str) or not name or set(name) & set("/\\. ,\n\t\0"):
        raise ValueError(
            f"{path}: {name!r} cannot name a folder; leave out '/', '\\', '.', ',' and spaces"
        )
    if name.casefold() == RESERVED:
        raise ValueError(f"{path}: {name!r} is the folder of the report; give another name")
    if len(name.encode()) > 200:
        raise ValueError(f"{path}: {name[:40]!r}... is too long for a folder's name")


def run_file(path: Path) -> ModuleType:
    """The module that a Python file makes; modules beside it can be imported, now and later."""
    folder = path.resolve().parent
    module_spec = importlib.util.spec_from_file_location(f"experiments_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    for name in _SIBLINGS & set(sys.modules):  # those of another file may bear the same names
        del sys.modules[name]
    _SIBLINGS.clear()
    before = set(sys.modules)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = module  # where dataclasses look names up
    try:
        module_spec.loader.exec_module(module)
    except SystemExit as error:
        raise ValueError(f"{path} ends Python (SystemExit: {error.code}) when it is run") from error
    finally:
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).resolve().is_relative_to(folder) and is_own(file):
                _SIBLINGS.add(name)
    return module
