"""An experiment: one model variant, its data, its training, its evaluation."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax

from lcx import spec
from lcx.adapters import ADAPTERS, HasVirtualTokens, Tuning
from lcx.adapters.split import check_merges
from lcx.adapters.split import shapes as tuned_shapes
from lcx.block import BLOCKS
from lcx.data import (
    SOURCES,
    TASKS,
    TEMPLATES,
    TOKENIZERS,
    Data,
    PairedTexts,
    Task,
    Texts,
    places,
)
from lcx.decoding import DECODINGS, PENALTIES, SEARCHES
from lcx.dense import nearest_divisors
from lcx.huggingface import Pretrained
from lcx.layers import CHANNELS, NORMS
from lcx.losses import (
    LOSSES,
    CrossEntropy,
    Loss,
    OfPairs,
    OfTeacher,
    OfWritten,
    needs_reference,
)
from lcx.mixers import MIXERS
from lcx.model import LM, parameters
from lcx.optim import OPTIMIZERS, AdamW, Optimizer
from lcx.parallel.mesh import RULES, Mesh, make_mesh, shardings
from lcx.paths import absolute
from lcx.positions import POSITIONS, SCALINGS, TRAINING_POSITIONS, Learned, TrainingPositions
from lcx.protocols import PROTOCOLS, EvaluationProtocol, SameTargets
from lcx.protocols.base import check_measures
from lcx.repetition import GUARDS
from lcx.sparsity import SPARSITIES
from lcx.types import HasHeads, Policy, SharesKeys


@dataclass(frozen=True)
class Train:
    """How long, on how much, and how."""

    length: int = 512
    """T, tokens a row."""
    batch: int = 8
    """B, rows a step."""
    steps: int = 1000
    """0: take the parameters of `init_from` as they are."""
    optimizer: Optimizer = AdamW()
    loss: Loss = CrossEntropy()
    """What is minimised."""
    accumulate: int = 1
    """Parts that a batch is cut into, one after the other, to save memory."""
    positions: TrainingPositions | None = None
    """Where tokens are said to stand; None: at 0, 1, 2, ..."""
    seed: int = 0
    checkpoint_every: int = 200
    """Steps."""
    evaluate_every: int | None = None
    """Steps from one loss on the validation split to the next; the last step always has one."""

    def __post_init__(self):
        for name in ("length", "batch", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Train: {name} must be at least 1, not {getattr(self, name)}")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(
                f"Train: evaluate_every must be at least 1 or None, not {self.evaluate_every}"
            )
        if self.steps < 0:
            raise ValueError(f"Train: steps cannot be negative, not {self.steps}")
        if self.positions is not None and self.positions.longest < self.length:
            raise ValueError(
                f"Train: positions below {self.positions.longest} do not suffice for a length of "
                f"{self.length}"
            )
        if self.batch % self.accumulate:
            raise ValueError(
                f"Train: a batch of {self.batch} rows cannot be cut into {self.accumulate} parts"
            )

    @property
    def rows(self) -> int:
        """How many rows are computed at a time."""
        return self.batch // self.accumulate

    def saves(self, step: int) -> bool:
        """Whether there is a checkpoint after this step, whatever happens."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def evaluates(self, step: int) -> bool:
        """Whether the loss on the validation split is taken after this step."""
        every = self.evaluate_every
        return every is not None and (step % every == 0 or step == self.steps)


@dataclass(frozen=True)
class Experiment:
    """One variant. What an experiment file returns, by name."""

    model: LM = LM()
    data: Task = Data()
    train: Train = Train()
    evaluation: EvaluationProtocol = SameTargets()
    mesh: Mesh = Mesh()
    init_from: str | Pretrained | None = None
    """The variant, or the published model, whose parameters this one starts from."""
    tune: Tuning | None = None
    """Which few parameters are trained, of those of `init_from` or added to them; None: all."""
    seeds: int = 1
    """Runs of this variant. Run i trains with `train.seed + i` and starts from run i of the variant
    that this one starts from: first values and the order of the data change, nothing else."""

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"Experiment: seeds must be at least 1, not {self.seeds}")

    def run(self, seed: int) -> "Experiment":
        """What run 0, 1, ... of this variant trains."""
        return replace(self, train=replace(self.train, seed=self.train.seed + seed))

    @property
    def parent(self) -> str | None:
        """The variant that this one starts from, if it is one."""
        return self.init_from if isinstance(self.init_from, str) else None

    @property
    def teacher(self) -> str | Pretrained | None:
        """The variant, or the published model, that this one learns from; None: nobody."""
        loss = self.train.loss
        return loss.teacher if isinstance(loss, OfTeacher) and self.train.steps else None

    @property
    def as_published(self) -> bool:
        """Whether it is a published model as it is, whose weights stay in their folder."""
        return self.train.steps == 0 and isinstance(self.init_from, Pretrained)

    def training_differences(self, other: "Experiment") -> list[str]:
        """Where two experiments differ in what they train.

        The evaluation may be another, and the mesh, which says where it runs; so may the number of
        runs, of which each has a folder of its own.
        """
        others = ("evaluation", "mesh", "seeds")
        names = (f.name for f in fields(self) if f.name not in others)
        return [
            line
            for name in names
            for line in spec.differences(getattr(self, name), getattr(other, name), name)
        ]


Experiments = dict[str, Experiment]

PARTS: dict[str, type] = {
    c.__name__: c for c in (Experiment, Train, LM, Policy, Mesh, Learned, Pretrained)
}
"""What holds the entries of the tables, by name."""

TABLES: dict[str, dict[str, type]] = {
    "blocks": BLOCKS,
    "mixers": MIXERS,
    "sparsities of softmax attention": SPARSITIES,
    "positions": POSITIONS,
    "scalings": SCALINGS,
    "training positions": TRAINING_POSITIONS,
    "channel mixers": CHANNELS,
    "norms": NORMS,
    "optimizers": OPTIMIZERS,
    "losses": LOSSES,
    "fine-tuning with few parameters": ADAPTERS,
    "tasks": TASKS,
    "sources": SOURCES,
    "chat templates": TEMPLATES,
    "tokenizers": TOKENIZERS,
    "evaluation protocols": PROTOCOLS,
    "decodings": DECODINGS,
    "searches": SEARCHES,
    "penalties": PENALTIES,
    "guards against loops": GUARDS,
}
"""All that an experiment can be put together from, by what it is."""


def types(experiment: Experiment) -> Mapping[str, type]:
    """Every name that an override of an experiment, or its saved form, may use.

    Beside the tables' names these are its own: an experiment file may define mixers of its own.
    """
    names = dict(PARTS)
    for table in TABLES.values():
        names |= table
    return names | spec.types_of(experiment)


def known(name: str, experiments: Iterable[str], where: str) -> None:
    """Raise ValueError, with the nearest right name, where `name` is no variant."""
    names = list(experiments)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"{where}: no variant {name!r}{hint} There are: {', '.join(names)}")


def choose(
    experiments: Experiments, only: str | None, assignments: Iterable[str]
) -> tuple[Experiments, list[str]]:
    """All variants, the chosen ones changed by every assignment (`spec.override`); the chosen.

    only: their names, separated by commas; None: all. Raises ValueError, as `--only` and `--set`.
    """
    changed = dict(experiments)
    chosen = list(changed) if only is None else only.split(",")
    for name in chosen:
        known(name, changed, "--only")
    for assignment in assignments:
        for name in chosen:
            try:
                before = changed[name]
                changed[name] = absolute(spec.override(before, assignment, types(before)))
            except ValueError as error:
                raise ValueError(f"--set {assignment} ({name}): {error}") from error
    return changed, chosen


def with_vocabulary(experiment: Experiment, corpus: Texts) -> Experiment:
    """The experiment, whose model has the tokenizer's token ids unless it says how many it has."""
    model = experiment.model
    if model.vocab is not None:
        return experiment
    return replace(experiment, model=replace(model, vocab=corpus.tokenizer.vocab_size))


def validate(name: str, experiment: Experiment, experiments: Experiments, corpus: Texts) -> None:
    """Raise ValueError for whatever can be known to fail before any training starts."""
    model, train = experiment.model, experiment.train

    def problem(where: str, what: object) -> ValueError:
        return ValueError(f"{name}: {where}: {what}")

    needed = corpus.tokenizer.vocab_size
    if model.vocabulary < needed:  # a table may be padded: ids beyond the tokenizer's never occur
        raise problem("model.vocab", f"is {model.vocabulary}, the tokenizer has {needed} tokens")
    try:
        shapes = _shapes(model)
    except ValueError as error:
        raise problem("model", error) from error
    if model.positions is not None:
        most = train.length if train.positions is None else train.positions.longest
        most = most if train.steps else 0
        longest = max(most, experiment.evaluation.longest)
        if isinstance(experiment.tune, HasVirtualTokens):
            longest += experiment.tune.tokens
        if longest > model.positions.capacity:
            raise problem(
                "model.positions",
                f"has vectors for texts of {model.positions.capacity} tokens, and there are some "
                f"of {longest}",
            )
    if isinstance(experiment.init_from, Pretrained):
        try:
            experiment.init_from.check(model)
        except ValueError as error:
            raise problem("init_from", error) from error
        if not (experiment.as_published or experiment.init_from.is_plain):
            raise problem(
                "init_from",
                "has virtual tokens before its documents, from which no training begins; "
                "train.steps=0 evaluates it",
            )
    elif experiment.init_from is not None:
        begun = experiments[experiment.init_from]
        if begun.tune is not None:
            try:
                check_merges(begun.tune, begun.model)
            except ValueError as error:
                raise problem(f"init_from={experiment.init_from!r}", error) from error
        parent = _shapes(begun.model)
        for path in sorted(shapes.keys() | parent.keys()):
            if shapes.get(path) != parent.get(path):
                raise problem(
                    f"init_from={experiment.init_from!r}",
                    f"{path} is {shapes.get(path, 'absent')} here, "
                    f"{parent.get(path, 'absent')} there",
                )
    if experiment.tune is not None:
        if experiment.init_from is None or not train.steps:
            raise problem("tune", "trains some parameters of `init_from`, so give it, and steps")
        try:
            tuned_shapes(experiment.tune, model)
        except ValueError as error:
            raise problem("tune", error) from error
    if experiment.evaluation.writes is not None and experiment.mesh.seq > 1:
        raise problem(
            "evaluation",
            f"{type(experiment.evaluation).__name__} has text written, a token at a time, which "
            f"cannot be cut along a sequence: mesh.seq={experiment.mesh.seq}",
        )
    if isinstance(train.loss, OfWritten) and train.steps:
        try:
            train.loss.check(train.length)
        except ValueError as error:
            raise problem("train.loss", error) from error
        if experiment.mesh.seq > 1:
            raise problem(
                "train.loss",
                f"{type(train.loss).__name__} has text written, a token at a time, which cannot be "
                f"cut along a sequence: mesh.seq={experiment.mesh.seq}",
            )
    try:
        experiment.mesh.check(len(jax.devices()), jax.process_count())
        check_cuts(experiment)
    except ValueError as error:
        raise problem("mesh", error) from error
    try:
        params = _trained(experiment)
        moments = jax.eval_shape(train.optimizer.transform(train.steps).init, params)
        shardings(moments, make_mesh(experiment.mesh))
    except ValueError as error:
        raise problem("train.optimizer", error) from error
    try:
        check_pairs(experiment, corpus)
    except ValueError as error:
        raise problem("train", error) from error
    try:
        check_measures(experiment.evaluation)
        corpus.check(train.length, experiment.evaluation)
    except ValueError as error:
        raise problem("evaluation", error) from error
    if train.evaluate_every is not None:
        try:
            there = places(trained_on(train.loss, corpus), train.length, "validation")
        except ValueError as error:
            raise problem("train.evaluate_every", error) from error
        needed = train.rows * train.length
        if there is not None and there < needed:
            raise problem(
                "train.evaluate_every",
                f"the validation split has {there} tokens, fewer than the {train.rows} rows of "
                f"{train.length} that are scored at a time; hold out more (data.validation), add "
                "documents, or leave evaluate_every at None",
            )


def check_cuts(experiment: Experiment) -> None:
    """Raise ValueError where the mesh does not divide what it cuts, with the nearest that does."""
    model, train, mesh = experiment.model, experiment.train, experiment.mesh

    def divides(ways: int, axes: str, what: str, size: int) -> None:
        if size % ways:
            near = nearest_divisors(size, ways)
            raise ValueError(
                f"{axes} = {ways} does not divide {what}, {size}; nearest that do: {near}"
            )

    if train.steps:
        divides(mesh.rows, "data x fsdp x expert", "train.batch's rows at a time", train.rows)
        divides(mesh.seq, "seq", "train.length", train.length)
    divides(mesh.fsdp, "fsdp", "model.width", model.width)
    for place, block in enumerate(model.pattern):
        for name, sublayer in block.sublayers.items():
            where = f"model.pattern.{place}.{name}"
            if isinstance(sublayer, HasHeads):
                count = sublayer.head_count(model.dims)
                divides(mesh.model, "model", f"the heads of {where}", count)
            if isinstance(sublayer, SharesKeys):
                count = sublayer.key_head_count(model.dims)
                divides(mesh.model, "model", f"the heads of keys of {where}", count)
    for path, leaf in parameters(model).items():
        names = leaf.get_metadata().get("out_sharding") or ()
        for name, size in zip(reversed(names), reversed(leaf.shape), strict=False):
            # a vocabulary that it does not divide is copied: that of bytes, 257, is prime
            if RULES[name] == "model" and name != "vocab":
                divides(mesh.model, "model", f"the {name!r} axis of {path}", size)


def trained_on(loss: Loss, corpus: Texts) -> Texts:
    """What training reads: of pairs, the preferred answers alone, unless the loss is of pairs."""
    if isinstance(corpus, PairedTexts) and not isinstance(loss, OfPairs):
        return corpus.preferred
    return corpus


def check_pairs(experiment: Experiment, corpus: Texts) -> None:
    """Raise ValueError where a loss of pairs and what it is taken of do not fit together."""
    train, loss = experiment.train, type(experiment.train.loss).__name__
    if not train.steps:
        return
    if not isinstance(corpus, PairedTexts):
        if isinstance(train.loss, OfPairs):
            raise ValueError(
                f"loss: {loss} compares two answers to a prompt, which the data do not have; write "
                "Data(Pairs('pairs.jsonl')), say"
            )
        return
    if not isinstance(train.loss, OfPairs):
        return
    if train.rows % (2 * experiment.mesh.rows):
        raise ValueError(
            f"batch: {train.batch} rows, in {train.accumulate} x {experiment.mesh.rows} parts "
            "(accumulate; data x fsdp x expert), leave no whole number of pairs in each: a "
            f"multiple of {2 * train.accumulate * experiment.mesh.rows} does"
        )
    if needs_reference(train.loss) and experiment.init_from is None:
        raise ValueError(
            f"loss: {loss}(reference=True) compares with the parameters that training starts from: "
            "name the variant or the published model (init_from), or set reference=False"
        )
    if needs_reference(train.loss) and train.positions is not None:
        raise ValueError(
            f"positions: {spec.describe(train.positions)} draws positions anew in each step, and "
            f"the reference of {loss} is computed once: leave it at None"
        )
    for split in ["train"] if train.evaluate_every is None else ["train", "validation"]:
        corpus.rows(train.length, split)


def _trained(experiment: Experiment) -> Any:
    """The parameters that an optimizer changes, abstract."""
    if experiment.tune is not None:
        return tuned_shapes(experiment.tune, experiment.model)
    return jax.eval_shape(experiment.model.init, jax.random.key(0))


def _shapes(model: LM) -> dict[str, tuple[int, ...]]:
    return {path: variable.shape for path, variable in parameters(model).items()}
