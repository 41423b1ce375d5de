"""Experiments out of the folders of their runs, without the file that they came from."""

import ast
import json
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path

from lcx import spec
from lcx.experiment import Experiment, types
from lcx.experiment_file import ExperimentFile, load, open_published, run_file
from lcx.huggingface.state_dict import holds_model
from lcx.own_code import OwnCode
from lcx.training.runs import Run


def open_experiment(run: Run) -> Experiment:
    """What a run trains. Classes of one's own come from the file kept in the run's folder.

    Raises FileNotFoundError where the folder is no run, ValueError where it cannot be read.
    """
    saved = run.folder / "experiment.json"
    if not saved.exists():
        there = sorted(path.parent.name for path in run.folder.glob("*/experiment.json"))
        hint = f"; it holds the runs {', '.join(there)}" if there else ""
        raise FileNotFoundError(f"{run.folder} is no run: it has no experiment.json{hint}")
    try:
        return spec.decode(json.loads(saved.read_text()), {**types(Experiment()), **_kept(run)})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{saved} cannot be read: {error}") from error


def runs_in(folder: Path) -> list[Run]:
    """Every run of a folder, by its place in the experiment file, then by name."""
    found = [Run(path.parent) for path in folder.glob("*/experiment.json")]

    def place(run: Run) -> tuple[int, str]:
        origin = run.origin
        return (0 if origin is None else origin.place, run.name)

    return sorted(found, key=place)


def open_experiments(path: Path) -> ExperimentFile:
    """The experiments of a file; of a folder of runs; or of a published model, as it is."""
    if not path.is_dir():
        return load(path)
    return open_published(path) if holds_model(path) else open_folder(path)


def open_folder(folder: Path) -> ExperimentFile:
    """The experiments of a folder's runs, as an experiment file would give them.

    Raises FileNotFoundError where it holds no run.
    """
    runs = runs_in(folder)
    first = [run for run in runs if "." not in run.name]  # of each variant: others are its seeds
    if not first:
        raise FileNotFoundError(f"{folder} holds no run of lcx, and is no experiment file")
    experiments, classes, files, changes = {}, {}, {}, {}
    for run in first:
        seeds = sum(other.name.partition(".")[0] == run.name for other in runs)
        experiments[run.name] = replace(open_experiment(run), seeds=seeds)
        if (origin := run.origin) is not None:
            classes |= origin.code
            changes[run.name] = list(origin.changes)
    title, question = described(first[0])
    path = Path(f"{title}.py")
    source = first[0].folder / "source"
    for kept in source.rglob("*"):
        if kept.is_file():
            files[kept.relative_to(source).as_posix()] = kept.read_text()
    return ExperimentFile(path, question, experiments, OwnCode(files, classes), changes)


def described(run: Run) -> tuple[str, str]:
    """Name and docstring of the experiment file that a run came from."""
    origin = run.origin
    if origin is None:
        return run.folder.parent.name, ""
    kept = run.folder / "source" / f"{origin.title}.py"
    docstring = ast.get_docstring(ast.parse(kept.read_text())) if kept.exists() else None
    return origin.title, (docstring or "").strip()


def _kept(run: Run) -> Mapping[str, type]:
    """The classes of one's own in the files that a run has kept, by name."""
    origin = run.origin
    if origin is None or not origin.code:
        return {}
    module = run_file(run.folder / "source" / f"{origin.title}.py")
    found = {n: c for n, c in vars(module).items() if isinstance(c, type) and is_dataclass(c)}
    # a class may be reached through a module beside the file
    inner = (m for m in vars(module).values() if hasattr(m, "__file__"))
    for beside in inner:
        named = vars(beside).items()
        found |= {n: c for n, c in named if isinstance(c, type) and is_dataclass(c)}
    return {name: found[name] for name in origin.code if name in found}
