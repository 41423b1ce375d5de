"""An experiment: one model variant, its data, its training, its evaluation."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from lcx import spec
from lcx.adapters import ADAPTERS, HasVirtualTokens, Tuning
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
)
from lcx.decoding import DECODINGS, PENALTIES, SEARCHES
from lcx.huggingface import Pretrained
from lcx.layers import CHANNELS, NORMS
from lcx.losses import (
    LOSSES,
    CrossEntropy,
    Loss,
    OfPairs,
    OfTeacher,
)
from lcx.mixers import MIXERS
from lcx.model import LM
from lcx.optim import OPTIMIZERS, AdamW, Optimizer
from lcx.parallel.mesh import Mesh
from lcx.paths import absolute
from lcx.positions import POSITIONS, SCALINGS, TRAINING_POSITIONS, Learned, TrainingPositions
from lcx.protocols import PROTOCOLS, EvaluationProtocol, SameTargets
from lcx.repetition import GUARDS
from lcx.sparsity import SPARSITIES
from lcx.types import Policy


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

    @property
    def virtual_tokens(self) -> int:
        """How many stand before every document: of `tune`, or of a published model's prompt."""
        if isinstance(self.tune, HasVirtualTokens):
            return self.tune.tokens
        return self.init_from.virtual_tokens if isinstance(self.init_from, Pretrained) else 0

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


def trained_on(loss: Loss, corpus: Texts) -> Texts:
    """What training reads: of pairs, the preferred answers alone, unless the loss is of pairs."""
    if isinstance(corpus, PairedTexts) and not isinstance(loss, OfPairs):
        return corpus.preferred
    return corpus
