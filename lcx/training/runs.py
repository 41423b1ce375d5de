"""A run is a folder: what was asked, where it ran, how it went, what came out.

experiment.json    the experiment, which loads back equal
origin.json        what it was made of beside: texts, code of one's own, first parameters,
                   teacher, overrides
source/            the experiment file, and the modules beside it that it imports
environment.json   versions, commits, devices, command line of each start
metrics.jsonl      one line a training step
checkpoints/       by orbax
reference/         what a loss of pairs compares with: a log-probability for each target
eval/              one JSON per evaluation protocol and data set
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

import lcx
from lcx import spec
from lcx.experiment import Experiment, types
from lcx.parallel.processes import barrier, is_primary
from lcx.training.origin import Origin, read_origin

LCX = Path(lcx.__file__).resolve().parent.parent

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class FolderTakenError(ValueError):
    """The folder belongs to another experiment, or another process is at work in it."""


@dataclass(frozen=True)
class Run:
    """The folder of one variant. Making a `Run` touches nothing; `claim` does."""

    folder: Path

    @classmethod
    def of(cls, out: Path, variant: str, seed: int) -> "Run":
        """Run 0, 1, ... of a variant: `name`, `name.1`, ... below `out`.

        No variant's name holds a dot, so none takes another's folder.
        """
        return cls(out / (f"{variant}.{seed}" if seed else variant))

    @property
    def name(self) -> str:
        """The variant's name, and its seed's number from the second on."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """Where orbax keeps this run's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def origin(self) -> Origin | None:
        """What it was made of; None where nothing was trained here yet."""
        return read_origin(self.folder)

    def saved(self, like: Experiment) -> Experiment | None:
        """The experiment that the folder holds; None where it holds none.

        `like`: one whose classes of one's own may be in it. Raises FolderTakenError where it cannot
        be read.
        """
        path = self.folder / "experiment.json"
        if not path.exists():
            return None
        try:
            return spec.decode(json.loads(path.read_text()), types(like))
        except (ValueError, TypeError) as error:
            raise FolderTakenError(
                f"{path} cannot be read back ({error}). Give another --out"
            ) from error

    def check(self, experiment: Experiment, origin: Origin | None = None) -> list[str]:
        """What this run was made of otherwise than is asked now, a line each; writes nothing.

        `origin`: what is asked; None: not known yet. Raises FolderTakenError where the folder holds
        another experiment.
        """
        saved, there = self.saved(experiment), self.origin
        if saved is None:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise FolderTakenError(
                    f"{self.folder} is not empty and holds no experiment.json: it is not a run "
                    "of lcx. Give another --out"
                )
            return []
        if origin is None and experiment.model.vocab is None:  # the texts are not loaded yet
            experiment = replace(
                experiment, model=replace(experiment.model, vocab=saved.model.vocab)
            )
        changed = experiment.training_differences(saved)
        if origin is None or (there is not None and origin.data == there.data):
            # the same texts, wherever they lie now
            changed = [line for line in changed if not line.startswith("data.source")]
        if changed:
            listed = "\n  ".join(changed)
            raise FolderTakenError(
                f"{self.folder} holds another experiment; nothing was overwritten. Give another "
                f"--out, or move that folder away. What differs (asked | there):\n  {listed}"
            )
        return [] if origin is None else origin.differences(there)

    def claim(self, experiment: Experiment, origin: Origin, files: Mapping[str, str]) -> None:
        """Make the folder this experiment's, and add this start to its environment.

        files: texts for `source/`, by path. The first of several processes does it, and the others
        wait.
        """
        self.check(experiment, origin)
        barrier(f"{self.name} is checked")
        if is_primary():
            self._claim(experiment, origin, files)
        barrier(f"{self.name} is claimed")

    def _claim(self, experiment: Experiment, origin: Origin, files: Mapping[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = self.folder / "experiment.json"
        if not saved.exists():
            for name, text in files.items():
                write_text(self.folder / "source" / name, text)
            write_json(self.folder / "origin.json", asdict(origin))
            write_json(saved, spec.encode(experiment))
        starts = self.folder / "environment.json"
        known = json.loads(starts.read_text()) if starts.exists() else []
        here = environment() | own_commit(origin) | {"mesh": asdict(experiment.mesh)}
        write_json(starts, [*known, here])

    def finish(self, weights: str) -> None:
        """Note the fingerprint of the parameters after the last step."""
        origin = self.origin
        if is_primary() and origin is not None and origin.weights != weights:
            write_json(self.folder / "origin.json", asdict(replace(origin, weights=weights)))
        barrier(f"{self.name} is finished")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while the run is written, so that two processes never write one run.

        Of several processes of one job, the first holds it for all. Raises FolderTakenError where
        another job holds it.
        """
        if not is_primary():
            yield
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.parent / f".{self.name}.lock", timeout=1)
        try:
            lock.acquire()
        except Timeout:
            raise FolderTakenError(f"another process is at work in {self.folder}") from None
        try:
            yield
        finally:
            lock.release()

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut short by a kill is left out."""
        path = self.folder / "metrics.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def evaluation(self, experiment: Experiment, parts: Sequence[str]) -> Path:
        """Where this protocol's result goes. parts: what else it belongs to."""
        protocol = spec.encode(experiment.evaluation)
        key = json.dumps([protocol, *parts], sort_keys=True)
        digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
        return self.folder / "eval" / f"{protocol['type']}-{digest}.json"

    def evaluations(self) -> list[dict[str, Any]]:
        """Results of these parameters, oldest first; what cannot be read is left out."""
        origin, found = self.origin, []
        paths = sorted((self.folder / "eval").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        for path in paths:
            result = read_result(path)
            if result is not None and origin is not None and result["weights"] == origin.weights:
                found.append(result)
        return found


def read_result(path: Path) -> dict[str, Any] | None:
    """An evaluation's JSON; None where there is none that is whole."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and "weights" in found else None


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def environment() -> dict[str, Any]:
    """What ran this: versions, commit and local changes, devices, command line."""
    devices = jax.devices()
    return {
        "lcx": lcx.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": jax.process_count(),
        "command": " ".join(sys.argv),
        **_commit(LCX),
    }


def own_commit(origin: Origin) -> dict[str, Any]:
    """Commit and local changes of the experiment file's repository, if it is another than lcx's."""
    if not origin.folder or _git(Path(origin.folder), "rev-parse", "--show-toplevel") == str(LCX):
        return {}
    return {f"own_{name}": said for name, said in _commit(Path(origin.folder)).items()}


def _commit(folder: Path) -> dict[str, str | None]:
    """Commit and local changes of the repository that a folder lies in.

    Of lcx's: only where that is lcx's own. Installed into an environment that lies in somebody's
    repository, it has none.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or (folder == LCX and Path(top) != LCX):
        return {"commit": None, "diff": None}
    said = _git(folder, "rev-parse", "HEAD"), _git(folder, "diff", "HEAD", "--no-color")
    return dict(zip(("commit", "diff"), said, strict=True))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in a folder; None where there is no repository."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # a file that is not UTF-8 stands in the diff as it is
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
