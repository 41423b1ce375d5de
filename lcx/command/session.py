"""The variants of one command: checked before anything long begins, trained and evaluated."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from lcx import spec
from lcx.cost import cost_of, training_flops
from lcx.data import Task, Texts
from lcx.evaluation.evaluate import describe_data, evaluate
from lcx.evaluation.metrics import Evaluation, about, jsonable
from lcx.experiment import ExperimentFile, Experiments, choose, load, validate
from lcx.parallel.processes import Preemption, is_primary
from lcx.pretrained import Pretrained
from lcx.training.checkpoint import CorruptCheckpointError
from lcx.training.loop import restore_params, train
from lcx.training.runs import Run, environment, write_json
from lcx.variants import (
    check_links,
    check_seeds,
    count_runs,
    published,
    setup_of,
    trained_length,
    trainings,
    with_ancestors,
)


@dataclass
class Session:
    """The chosen variants of an experiment file, checked, and where their runs are."""

    file: ExperimentFile
    experiments: Experiments
    chosen: list[str]
    out: Path
    corpora: dict[Task, Texts]
    console: Console
    preemption: Preemption

    @property
    def order(self) -> list[str]:
        """The chosen variants and those they start from, these first."""
        return with_ancestors(self.chosen, self.experiments)

    def runs(self, name: str) -> list[Run]:
        """Where a variant's runs are: `name`, then `name.1`, `name.2`, ...

        No variant's name holds a dot, so none takes another's folder.
        """
        later = range(1, count_runs(name, self.experiments))
        return [Run(self.out / name), *(Run(self.out / f"{name}.{i}") for i in later)]

    def check_folders(self) -> None:
        """Raise FolderTakenError where a run's folder holds something else."""
        for name in self.order:
            for seed, run in enumerate(self.runs(name)):
                run.check(self.experiments[name].run(seed))

    def train(self, name: str) -> None:
        """Train each run of a variant, or go on with it, or reuse it."""
        for seed in range(len(self.runs(name))):
            self._train(name, seed)

    def _train(self, name: str, seed: int) -> None:
        experiment, run = self.experiments[name].run(seed), self.runs(name)[seed]
        with run.lock():
            run.check(experiment)
            if self._reusable(name, run):
                self.console.print(f"{run.name}: trained already ({run.folder}), reused")
                return
            run.claim(experiment)
            start = None
            if isinstance(experiment.init_from, Pretrained):
                start = experiment.init_from.load(experiment.model)
            elif parent := experiment.init_from:
                begun = self.runs(parent)  # one alone, where a published model came unchanged
                start = restore_params(
                    self.experiments[parent], begun[min(seed, len(begun) - 1)], self.console
                )
            corpus = self.corpora[experiment.data]
            train(experiment, run, corpus, start, self.console, self.preemption)

    def _reusable(self, name: str, run: Run) -> bool:
        """Whether a run is trained, and its last checkpoint can be read."""
        try:
            restore_params(self.experiments[name], run, self.console)
        except (FileNotFoundError, CorruptCheckpointError):
            return False
        return True

    def evaluate(self, name: str) -> list[Evaluation]:
        """Evaluate each run of a trained variant, or reuse its result."""
        return [self._evaluate(name, seed) for seed in range(len(self.runs(name)))]

    def _evaluate(self, name: str, seed: int) -> Evaluation:
        experiment, run = self.experiments[name], self.runs(name)[seed]
        corpus = self.corpora[experiment.data]
        path = run.evaluation(experiment, corpus.fingerprint)
        if path.exists():
            self.console.print(f"{run.name}: evaluated already ({path}), reused")
            return json.loads(path.read_text())
        params = restore_params(experiment, run, self.console)
        scores, seconds = evaluate(
            experiment, params, corpus, run.name, self.console, self.preemption
        )
        stages = trainings(name, self.experiments)
        rows = {n: self.runs(n)[seed].read_metrics() for n in stages}
        last = {n: of_one[-1] for n, of_one in rows.items() if of_one}  # the first process has all
        model = published(name, self.experiments)
        result = Evaluation(
            variant=name,
            seed=seed,
            protocol=spec.encode(experiment.evaluation),
            about=about(experiment.evaluation),
            data=describe_data(experiment, corpus),
            setup=setup_of(experiment),
            cost=cost_of(experiment.model, experiment.train.length, experiment.evaluation.contexts),
            published=None if model is None else spec.describe(model),
            trainings=stages,
            train_len=trained_length(name, self.experiments),
            train_tokens=int(sum(row["tokens"] for row in last.values())),
            train_flops=None
            if model
            else self._flops({n: row["tokens"] for n, row in last.items()}),
            train_seconds=sum(row["seconds"] for row in last.values()),
            eval_seconds=round(seconds, 3),
            contexts=scores,
            environment={k: v for k, v in environment().items() if k != "diff"},
        )
        if is_primary():
            write_json(path, jsonable(result))
        return result

    def _flops(self, tokens: dict[str, float]) -> float | None:
        """Of trainings on so many tokens each; None where a formula is missing."""
        total = 0.0
        for name, n in tokens.items():
            experiment = self.experiments[name]
            each = training_flops(experiment.model, experiment.train.length)
            if each is None:
                return None
            total += each * n
        return total


@contextmanager
def open_session(
    file: Path,
    out: Path | None,
    only: str | None,
    assignments: tuple[str, ...],
    seeds: int | None,
) -> Iterator[Session]:
    """Load, override, and check everything that can be known before long work starts.

    seeds: runs of every variant; None: as the file says. While the session is open, a signal to end
    waits for a good moment. Of several processes the first alone says something.
    """
    console = Console(quiet=not is_primary())
    loaded = load(file)
    experiments, chosen = choose(loaded.experiments, only, assignments)
    if seeds is not None:
        if seeds < 1:
            raise ValueError(f"--seeds must be at least 1, not {seeds}")
        experiments = {name: replace(e, seeds=seeds) for name, e in experiments.items()}
    check_links(experiments)
    out = out or Path("runs") / file.stem
    session = Session(loaded, experiments, chosen, out, {}, console, Preemption())
    check_seeds(session.order, experiments)
    session.check_folders()
    for name in session.order:
        experiment = experiments[name]
        if experiment.data not in session.corpora:
            session.corpora[experiment.data] = experiment.data.load()
        validate(name, experiment, experiments, session.corpora[experiment.data])
    with session.preemption:
        yield session
