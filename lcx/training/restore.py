"""The parameters of finished runs, read back."""

from dataclasses import replace
from typing import Any

import jax
from rich.console import Console

from lcx.adapters.split import frozen, merged, shapes, tuned
from lcx.experiment import Experiment
from lcx.huggingface import Pretrained
from lcx.parallel.mesh import make_mesh, shardings
from lcx.progress import plain_console, warner
from lcx.training.checkpoint import Checkpoints, CorruptCheckpointError
from lcx.training.kept import open_experiment
from lcx.training.runs import Run
from lcx.types import Leaves, Params


class AnotherBaseError(ValueError):
    """What a run was tuned from is there no longer, or is another than it was."""


def restore_params(experiment: Experiment, run: Run, console: Console | None = None) -> Params:
    """The parameters of a finished run, on this experiment's mesh.

    Those of a published model that was not trained are read where they lie; of a tuned run the
    tuned ones are put into its base's, where they were. Raises FileNotFoundError where the run is
    not finished, CorruptCheckpointError where its last checkpoint cannot be read, AnotherBaseError
    where its base is another.
    """
    start = experiment.init_from
    if not finished(experiment, run):
        raise FileNotFoundError(f"{run.name} is not trained in {run.folder.parent} (lcx train)")
    if experiment.as_published and isinstance(start, Pretrained):
        return start.load(experiment.model, experiment.mesh)
    if experiment.tune is not None:
        return tuned(experiment.tune, experiment.model, *_in_two(experiment, run, console))
    like = jax.eval_shape(experiment.model.init, jax.random.key(0))
    return _last(experiment, run, like, console)


def restore_plain(experiment: Experiment, run: Run, console: Console | None = None) -> Params:
    """The same as parameters of the plain model: what others begin from, and what is exported.

    Of a tuned run, merged. Raises ValueError where its method cannot be.
    """
    if experiment.tune is None or not finished(experiment, run):
        return restore_params(experiment, run, console)
    return merged(experiment.tune, experiment.model, *_in_two(experiment, run, console))


def restore_trained(experiment: Experiment, run: Run, console: Console | None = None) -> Leaves:
    """What a tuned run has trained, without its base. Raises ValueError where nothing was tuned."""
    if experiment.tune is None:
        raise ValueError(f"{run.name} is no tuned run: all of its parameters were trained")
    if not finished(experiment, run):
        raise FileNotFoundError(f"{run.name} is not trained in {run.folder.parent} (lcx train)")
    return _last(experiment, run, shapes(experiment.tune, experiment.model), console)


def finished(experiment: Experiment, run: Run) -> bool:
    """Whether the run has the checkpoint of its last step; a published model needs none."""
    if experiment.as_published:
        return run.origin is not None
    return (run.checkpoints / str(experiment.train.steps)).is_dir()


def _last(experiment: Experiment, run: Run, like: Any, console: Console | None) -> Any:
    """What the last checkpoint has in place of abstract parameters."""
    placed = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        like,
        shardings(like, make_mesh(experiment.mesh)),
    )
    with Checkpoints(run.checkpoints, warner(console or plain_console())) as checkpoints:
        found = checkpoints.restore({"params": placed})
    if found is None or found[0] != experiment.train.steps:
        raise CorruptCheckpointError(
            f"checkpoint {experiment.train.steps} in {run.checkpoints} cannot be read; lcx train "
            "makes it again"
        )
    return found[1]["params"]


def _in_two(experiment: Experiment, run: Run, console: Console | None) -> tuple[Leaves, Leaves]:
    """What was trained, and what was frozen, of a tuned run."""
    tune, model = experiment.tune, experiment.model
    assert tune is not None
    base = _base(experiment, run, console)
    return _last(experiment, run, shapes(tune, model), console), frozen(tune, model, base)


def _base(experiment: Experiment, run: Run, console: Console | None) -> Params:
    """The parameters that a run was tuned from, which its origin tells by their fingerprint."""
    start, origin = experiment.init_from, run.origin
    wanted = None if origin is None else origin.began_from
    if wanted is None:
        raise AnotherBaseError(f"nothing in {run.folder} says what it was tuned from")
    if isinstance(start, Pretrained):
        try:
            there = start.fingerprint()
        except FileNotFoundError as error:
            raise AnotherBaseError(f"{run.name} was tuned from {start}: {error}") from error
        _check(run, f"{start}", there, wanted)
        return start.load(experiment.model, experiment.mesh)
    _, _, seed = run.name.partition(".")
    own = Run.of(run.folder.parent, str(start), int(seed or 0))
    parent = own if own.folder.is_dir() else Run.of(run.folder.parent, str(start), 0)
    try:
        its = replace(open_experiment(parent), mesh=experiment.mesh)
    except FileNotFoundError as error:
        raise AnotherBaseError(
            f"{run.name} was tuned from {start}, whose run has to lie beside it, in "
            f"{run.folder.parent}: only what was trained is kept here ({error})"
        ) from error
    origin = parent.origin
    _check(run, f"{parent.folder}", None if origin is None else origin.weights, wanted)
    return restore_plain(its, parent, console)


def _check(run: Run, base: str, there: str | None, wanted: str) -> None:
    if there != wanted:
        raise AnotherBaseError(
            f"{run.name} was tuned from {base} as it was with the fingerprint {wanted}; now it is "
            f"{'not finished' if there is None else f'another, {there}'}. Tune it anew: give "
            "another --out, or move its folder away"
        )
