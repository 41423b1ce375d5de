"""A run is a folder: what was asked, where it ran, how it went, what came out.

experiment.json    the experiment, which loads back equal
environment.json   versions, commit, devices, command line of each start
metrics.jsonl      one line a training step
checkpoints/       by orbax
eval/              one JSON per evaluation protocol and data set
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

import lcx
from lcx import spec
from lcx.experiment import Experiment, types
from lcx.parallel.processes import barrier, is_primary

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class FolderTakenError(ValueError):
    """The folder belongs to another experiment, or another process is at work in it."""


@dataclass(frozen=True)
class Run:
    """The folder of one variant. Making a `Run` touches nothing; `claim` does."""

    folder: Path

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """Where orbax keeps this run's checkpoints."""
        return self.folder / "checkpoints"

    def check(self, experiment: Experiment) -> None:
        """Raise FolderTakenError where the folder holds another experiment; writes nothing."""
        saved = self.folder / "experiment.json"
        if not saved.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise FolderTakenError(
                    f"{self.folder} is not empty and holds no experiment.json: it is not a run "
                    "of lcx. Give another --out"
                )
            return
        try:
            there = spec.decode(json.loads(saved.read_text()), types(experiment))
        except (ValueError, TypeError) as error:
            raise FolderTakenError(
                f"{saved} cannot be read back ({error}). Give another --out"
            ) from error
        changed = experiment.training_differences(there)
        if changed:
            listed = "\n  ".join(changed)
            raise FolderTakenError(
                f"{self.folder} holds another experiment; nothing was overwritten. Give another "
                f"--out, or move that folder away. What differs (asked | there):\n  {listed}"
            )

    def claim(self, experiment: Experiment) -> None:
        """Make the folder this experiment's, and add this start to its environment.

        The first of several processes does it, and the others wait.
        """
        self.check(experiment)
        barrier(f"{self.name} is checked")
        if is_primary():
            self._claim(experiment)
        barrier(f"{self.name} is claimed")

    def _claim(self, experiment: Experiment) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = self.folder / "experiment.json"
        if not saved.exists():
            write_json(saved, spec.encode(experiment))
        starts = self.folder / "environment.json"
        known = json.loads(starts.read_text()) if starts.exists() else []
        write_json(starts, [*known, environment() | {"mesh": asdict(experiment.mesh)}])

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

    def evaluation(self, experiment: Experiment, fingerprint: str) -> Path:
        """Where this protocol's result on this data goes."""
        protocol = spec.encode(experiment.evaluation)
        key = json.dumps([protocol, fingerprint], sort_keys=True)
        digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
        return self.folder / "eval" / f"{protocol['type']}-{digest}.json"


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=1) + "\n")
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
        "commit": _git("rev-parse", "HEAD"),
        "diff": _git("diff", "HEAD", "--no-color"),
    }


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that lcx runs from; None where there is none."""
    here = Path(lcx.__file__).parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
