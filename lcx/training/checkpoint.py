"""Checkpoints of a run by orbax: arrays and the place in the data, written as training goes on."""

import glob
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from lcx.parallel.processes import barrier, is_primary

Tree = Any


class CorruptCheckpointError(RuntimeError):
    """No checkpoint of a folder could be read."""


class Checkpoints:
    """The checkpoints in a folder: the newest two, and that of a step `always`. A context manager.

    Arrays are stored by their path in the tree, so that other code can read them too, and are
    restored on whatever mesh the given shardings say.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], always: int | None = None):
        self.folder = folder
        self._warn = warn
        self._link = None
        seen = folder.absolute()
        if glob.has_magic(str(seen)):
            # orbax looks for its files by patterns of whole paths: it is given one without signs
            self._link = tempfile.TemporaryDirectory(prefix="lcx-")
            seen.mkdir(parents=True, exist_ok=True)
            seen = Path(self._link.name) / "checkpoints"
            seen.symlink_to(folder.absolute())
        kept: list[Any] = [policies.LatestN(2)]
        if always is not None:
            kept.append(policies.CustomSteps([always]))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), create=True
        )
        self._manager = ocp.CheckpointManager(seen, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self._manager.close()
        if self._link is not None:
            self._link.cleanup()

    def save(self, step: int, tree: Tree, batches: Any) -> None:
        """Write in the background. `batches`: an iterator, whose state is saved beside, as JSON.

        To be called by all processes; the state is one and the same for all of them.
        """
        items: dict[str, ocp.args.CheckpointArgs] = {"arrays": ocp.args.PyTreeSave(_by_path(tree))}
        if batches is not None:
            items["data"] = ocp.args.JsonSave(batches.get_state())
        self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Until what was saved is on disk."""
        self._manager.wait_until_finished()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, like: Tree, batches: Any = None) -> tuple[int, Tree] | None:
        """The newest readable checkpoint as (step, tree); None where the folder has none.

        `like` gives shapes, dtypes and shardings, and may leave out branches that are not wanted.
        An iterator of `batches` is put where it was. A checkpoint that cannot be read is reported
        and the one before it is taken; CorruptCheckpointError where none can be read.
        """
        flat = _by_path(like)
        arrays = ocp.args.PyTreeRestore(
            flat,
            restore_args=ocp.checkpoint_utils.construct_restore_args(flat),
            partial_restore=True,
        )
        items: dict[str, ocp.args.CheckpointArgs] = {"arrays": arrays}
        if batches is not None:
            items["data"] = ocp.args.JsonRestore()
        steps = self.steps
        for step in reversed(steps):
            try:
                found = self._manager.restore(step, args=ocp.args.Composite(**items))
                if batches is not None:
                    batches.set_state(found["data"])
            except Exception as error:  # whatever a damaged file makes the reader raise
                reason = str(error).strip().split("\n")[0][:200]
                self._warn(f"checkpoint {step} in {self.folder} cannot be read ({reason})")
                continue
            arrays = found["arrays"]
            return step, jax.tree.unflatten(jax.tree.structure(like), [arrays[p] for p in flat])
        if steps:
            raise CorruptCheckpointError(
                f"none of the checkpoints {steps} in {self.folder} can be read; "
                "move the folder away to train again"
            )
        return None

    def set_aside(self, after: int) -> None:
        """Move the checkpoints after a step away, into `unreadable/` beside the folder."""
        for step in self.steps:
            if step > after and is_primary():
                away = self.folder.parent / "unreadable" / f"{step}-{time.time_ns()}"
                away.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(away)
                self._warn(f"it was moved to {away}")
        barrier("checkpoints are set aside")
        self._manager.reload()


def _by_path(tree: Tree) -> dict[str, Any]:
    """{path in the tree: array}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
