"""Variants of one file together: which starts from which, what that makes of their weights."""

from collections.abc import Iterable
from typing import Any

from lcx import spec
from lcx.experiment import Experiment, Experiments, known
from lcx.huggingface import Pretrained


def check_links(experiments: Experiments) -> None:
    """Raise ValueError where an `init_from` or a judge names no variant, or they do not fit."""
    for name, experiment in experiments.items():
        seen, at = [name], experiment.parent
        while at is not None:
            known(at, experiments, f"{seen[-1]}.init_from")
            if at in seen:
                raise ValueError(f"init_from goes in a circle: {' -> '.join([*seen, at])}")
            seen.append(at)
            at = experiments[at].parent
        if experiment.train.steps == 0 and experiment.init_from is None:
            raise ValueError(f"{name}: train.steps is 0 and there is no init_from to take over")
        judge = experiment.evaluation.judge
        if judge is not None:
            known(judge, experiments, f"{name}.evaluation.judge")
            if experiments[judge].data != experiment.data:
                raise ValueError(
                    f"{name}.evaluation.judge: {judge} has other data; a judge has to read the "
                    "same tokens"
                )


def check_seeds(names: Iterable[str], experiments: Experiments) -> None:
    """Raise ValueError where a variant has another number of runs than the one it starts from."""
    for name in names:
        parent = experiments[name].parent
        if parent is None:
            continue
        here, there = (count_runs(n, experiments) for n in (name, parent))
        if here != there and trainings(parent, experiments):
            raise ValueError(
                f"{name}: seeds: is {here}, and {parent}, which it starts from, has {there}; run i "
                f"starts from run i, so give both the same: --seeds {max(here, there)}, or "
                f"seeds={max(here, there)} in the experiment file"
            )


def with_ancestors(names: Iterable[str], experiments: Experiments) -> list[str]:
    """The variants in an order in which each comes after the one that it starts from."""
    ordered: list[str] = []

    def add(name: str) -> None:
        parent = experiments[name].parent
        if parent is not None:
            add(parent)
        if name not in ordered:
            ordered.append(name)

    for name in names:
        add(name)
    return ordered


def trainings(name: str, experiments: Experiments) -> list[str]:
    """The variants whose training, one after the other, makes the weights of this one."""
    return [n for n in with_ancestors([name], experiments) if experiments[n].train.steps > 0]


def count_runs(name: str, experiments: Experiments) -> int:
    """How often a variant is run: once where no seed has a part in its weights."""
    return experiments[name].seeds if trainings(name, experiments) else 1


def published(name: str, experiments: Experiments) -> Pretrained | None:
    """The published model that a variant's weights come from, if they do."""
    oldest = experiments[with_ancestors([name], experiments)[0]].init_from
    return oldest if isinstance(oldest, Pretrained) else None


def trained_length(name: str, experiments: Experiments) -> int | None:
    """Tokens of the longest texts that a variant's weights were trained on; None: nobody says.

    Those of its own training count, and of every one before it, if it had any steps; of a published
    model, the length that its config tells, if it does. Rows whose positions are spread out
    (`train.positions`) count as long as they are.
    """
    lengths = [experiments[n].train.length for n in trainings(name, experiments)]
    model = published(name, experiments)
    if model is not None and model.trained_length is not None:
        lengths.append(model.trained_length)
    return max(lengths, default=None)


def cost_length(name: str, experiments: Experiments) -> int | None:
    """Tokens a row that a variant's training takes; where it has no step, that of its weights."""
    train = experiments[name].train
    return train.length if train.steps > 0 else trained_length(name, experiments)


def setup_of(experiment: Experiment) -> dict[str, Any]:
    """What a variant is, for a table: names and sizes, as plain values.

    Of one that trains no step, nothing that only a training would have.
    """
    model, train, start = experiment.model, experiment.train, experiment.init_from
    mixers = [block.mixer for block in model.pattern]
    training = {
        "length": train.length,
        "batch": train.batch,
        "positions": spec.describe(train.positions) if train.positions else None,
        "optimizer": spec.describe(train.optimizer),
        "learning_rate": getattr(train.optimizer, "peak", None),
        "loss": spec.describe(train.loss),
        "loss_unit": train.loss.unit,
    }
    return {
        "mixers": [spec.describe(mixer) for mixer in mixers],
        "heads": [getattr(mixer, "heads", None) for mixer in mixers],
        "layers": len(model.pattern) * model.repeats,
        "width": model.width,
        "vocabulary": model.vocabulary,
        "steps": train.steps,
        **(training if train.steps else dict.fromkeys(training)),
        "tune": spec.describe(experiment.tune) if experiment.tune else None,
        "init_from": start if start is None or isinstance(start, str) else spec.describe(start),
    }
