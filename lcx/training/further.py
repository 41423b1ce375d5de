"""More steps for a finished run, where they give what they would have given at once."""

import shutil
from dataclasses import asdict, replace

import jax
import numpy as np

from lcx import spec
from lcx.experiment import Experiment
from lcx.optim import Optimizer
from lcx.parallel.processes import barrier, is_primary
from lcx.training.runs import FolderTakenError, Run, write_json


def exact_until(optimizer: Optimizer, steps: int, more: int) -> int:
    """The steps at the start that runs of `steps` and of `more` steps have in common.

    It is the learning rate that may depend on how many steps there will be.
    """
    numbers = np.arange(min(steps, more))
    rates = [jax.vmap(optimizer.learning_rate(n))(numbers) for n in (steps, more)]
    other = np.flatnonzero(np.asarray(rates[0]) != np.asarray(rates[1]))
    return int(other[0]) if len(other) else len(numbers)


def worth_keeping(optimizer: Optimizer, steps: int) -> int | None:
    """The step whose checkpoint a longer run can go on from; None: none but an early one."""
    last = exact_until(optimizer, steps, 10 * steps)
    return last if last >= steps / 2 else None


def further(run: Run, asked: Experiment) -> int | None:
    """The checkpoint from which a finished run goes on to the steps that are asked.

    None where nothing more is asked, or something else. Raises FolderTakenError, which says why,
    where more steps would not give what they give at once.
    """
    there = run.saved(asked)
    if there is not None and asked.model.vocab is None:  # the texts are not loaded yet
        asked = replace(asked, model=replace(asked.model, vocab=there.model.vocab))
    earlier = run.folder / "earlier" / str(asked.train.steps)
    if there is not None and asked.train.steps < there.train.steps and earlier.is_dir():
        raise FolderTakenError(
            f"{run.folder} has gone on to {there.train.steps} steps; what it was after "
            f"{asked.train.steps} is kept in {earlier}. Ask for --set train.steps="
            f"{there.train.steps}, or give another --out"
        )
    if there is None or not 0 < there.train.steps < asked.train.steps:
        return None
    longer = replace(there, train=replace(there.train, steps=asked.train.steps))
    done = there.train.steps
    if asked.training_differences(longer) or not (run.checkpoints / str(done)).is_dir():
        return None
    exact = exact_until(there.train.optimizer, done, asked.train.steps)
    kept = [int(path.name) for path in run.checkpoints.iterdir() if path.name.isdecimal()]
    if fitting := [step for step in kept if step <= exact]:
        return max(fitting)
    raise FolderTakenError(
        f"{run.folder} was trained for {done} steps and cannot go on to {asked.train.steps} as if "
        f"these had been asked at once: the learning rate of "
        f"{spec.describe(there.train.optimizer)} depends on the number of steps, from step "
        f"{exact} on, and the checkpoints kept are {sorted(kept)}. A constant schedule can go on, "
        "and wsd from before its decay; otherwise give another --out, or make a variant with "
        f"init_from={run.name!r}"
    )


def go_further(run: Run, asked: Experiment, step: int) -> None:
    """Make a finished run one of more steps, unfinished, whose last checkpoint is that of `step`.

    What it was is kept in `earlier/`.
    """
    there, origin = run.saved(asked), run.origin
    barrier(f"{run.name} is about to go further")  # all have read what is there
    if is_primary() and there is not None and origin is not None:
        earlier = run.folder / "earlier" / str(there.train.steps)
        earlier.mkdir(parents=True, exist_ok=True)
        for name in ("experiment.json", "origin.json", "metrics.jsonl"):
            shutil.copy2(run.folder / name, earlier / name)
        for path in run.checkpoints.iterdir():
            if path.name.isdecimal() and int(path.name) > step:
                path.rename(earlier / path.name)
        write_json(run.folder / "origin.json", asdict(replace(origin, weights=None)))
        longer = replace(there, train=replace(there.train, steps=asked.train.steps))
        write_json(run.folder / "experiment.json", spec.encode(longer))
    barrier(f"{run.name} goes further")
