"""Variants of one file together: which starts from which, what that makes of their weights."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lcx import spec
from lcx.data import Task, Texts, same_tokens, spells_as
from lcx.experiment import Experiment, Experiments, known
from lcx.huggingface import Pretrained
from lcx.model import LM
from lcx.paths import resolved
from lcx.validation import check_cuts


def check_links(experiments: Experiments) -> None:
    """Raise ValueError where an `init_from`, a teacher or a judge is no variant that fits."""
    for name, experiment in experiments.items():
        if experiment.parent is not None:
            known(experiment.parent, experiments, f"{name}.init_from")
        if isinstance(experiment.teacher, str):
            known(experiment.teacher, experiments, f"{name}.train.loss.teacher")
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
    for name in experiments:
        _check_circle(name, experiments, ())


def _check_circle(name: str, experiments: Experiments, after: tuple[str, ...]) -> None:
    """Raise ValueError where a variant would have to be trained before itself."""
    if name in after:
        around = [*after[after.index(name) :], name]
        taught = any(experiments[one].teacher in around for one in around)
        what = "init_from and train.loss.teacher go" if taught else "init_from goes"
        raise ValueError(f"{what} in a circle: {' -> '.join(around)}")
    for needed in _needed(experiments[name]):
        _check_circle(needed, experiments, (*after, name))


def check_teacher(name: str, experiments: Experiments, corpora: Mapping[Task, Texts]) -> None:
    """Raise ValueError where a variant cannot learn from its teacher."""
    experiment = experiments[name]
    teacher, model = experiment.teacher, teacher_model(name, experiments)
    if teacher is None or model is None:
        return
    train, tokenizer = experiment.train, corpora[experiment.data].tokenizer
    where = f"{name}: train.loss.teacher: {teacher}"
    if model.vocabulary != experiment.model.vocabulary:
        raise ValueError(
            f"{where} has {model.vocabulary} token ids, and {name} has "
            f"{experiment.model.vocabulary}: give both the same tokenizer and model.vocab"
        )
    if isinstance(teacher, Pretrained):
        same = spells_as(tokenizer, resolved(teacher.folder) / "tokenizer.json")
    else:
        same = same_tokens(tokenizer, corpora[experiments[teacher].data].tokenizer)
    if not same:
        raise ValueError(
            f"{where} has another tokenizer; the probabilities of two models are compared id by id"
        )
    longest = train.length if train.positions is None else train.positions.longest
    read_by = teacher if isinstance(teacher, Pretrained) else experiments[teacher]
    longest += read_by.virtual_tokens
    if model.positions is not None and longest > model.positions.capacity:
        raise ValueError(
            f"{where} has vectors for texts of {model.positions.capacity} tokens, and is to read "
            f"some of {longest}"
        )
    try:
        if isinstance(teacher, Pretrained):
            teacher.check(model)
        check_cuts(replace(experiment, model=model))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def teacher_model(name: str, experiments: Experiments) -> LM | None:
    """The model that a variant learns from; None: it has no teacher.

    A published one computes in the dtype of the variant that learns from it.
    """
    experiment = experiments[name]
    teacher, own = experiment.teacher, experiment.model
    match teacher:
        case None:
            return None
        case Pretrained():
            return replace(teacher.model(), policy=replace(own.policy, params=teacher.dtype))
        case _:
            model = experiments[teacher].model
            return model if model.vocab is not None else replace(model, vocab=own.vocab)


def check_seeds(names: Iterable[str], experiments: Experiments) -> None:
    """Raise ValueError where a variant's runs are not as many as those that it needs."""
    for name in names:
        teacher = experiments[name].teacher
        if isinstance(teacher, str):
            here, there = (count_runs(n, experiments) for n in (name, teacher))
            if there not in (1, here):
                raise ValueError(
                    f"{name}: seeds: is {here}, and {teacher}, its teacher, has {there}; run i "
                    "learns from run i, or all from the only one, so give the teacher as many"
                )
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
    return _ordered(names, {name: _ancestor(e) for name, e in experiments.items()})


def with_needed(names: Iterable[str], experiments: Experiments) -> list[str]:
    """The same, in which each comes after its teacher, too: the order of training."""
    return _ordered(names, {name: _needed(e) for name, e in experiments.items()})


def _ancestor(experiment: Experiment) -> list[str]:
    """The variant that this one starts from, if it is one."""
    return [] if experiment.parent is None else [experiment.parent]


def _needed(experiment: Experiment) -> list[str]:
    """The variants that have to be trained before this one."""
    teacher = experiment.teacher
    return [*_ancestor(experiment), *([teacher] if isinstance(teacher, str) else [])]


def _ordered(names: Iterable[str], before: Mapping[str, list[str]]) -> list[str]:
    ordered: list[str] = []

    def add(name: str) -> None:
        for needed in before[name]:
            add(needed)
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
