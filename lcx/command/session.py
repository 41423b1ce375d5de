"""The variants of one command: checked before anything long begins, trained and evaluated."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from rich.console import Console

from lcx import spec
from lcx.cache import Digest
from lcx.command.errors import explained, first_line
from lcx.cost import cost_of, training_flops
from lcx.data import Task, Texts
from lcx.evaluation.evaluate import describe_data, evaluate
from lcx.evaluation.metrics import Evaluation, about, jsonable
from lcx.experiment import Experiments
from lcx.experiment_file import ExperimentFile
from lcx.huggingface import Pretrained
from lcx.losses import Teacher
from lcx.model import LM
from lcx.parallel.preemption import Preempted, Preemption, several
from lcx.parallel.processes import is_primary
from lcx.training.checkpoint import CorruptCheckpointError
from lcx.training.fingerprint import fingerprint
from lcx.training.further import further, go_further
from lcx.training.log import NonFiniteLossError
from lcx.training.loop import train
from lcx.training.origin import Origin
from lcx.training.restore import finished, restore_params, restore_plain
from lcx.training.runs import FolderTakenError, Run, environment, read_result, write_json
from lcx.types import Params
from lcx.variants import (
    cost_length,
    count_runs,
    published,
    setup_of,
    teacher_model,
    trained_length,
    trainings,
    with_needed,
)


@dataclass
class Session:
    """The chosen variants of an experiment file, checked, and where their runs are."""

    file: ExperimentFile
    experiments: Experiments
    chosen: list[str]
    out: Path
    console: Console
    preemption: Preemption
    changes: dict[str, list[str]]
    """The assignments that changed each variant."""
    reuse: bool
    """Whether a finished run is taken that was made of something else than is asked now."""
    corpora: dict[Task, Texts] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Runs that could not be trained or evaluated, and why, in a line."""
    _published: dict[Pretrained, str] = field(default_factory=dict)

    @property
    def order(self) -> list[str]:
        """The chosen variants, their judges, and those they start and learn from, these first."""
        judges = (self.experiments[name].evaluation.judge for name in self.chosen)
        needed = [judge for judge in judges if judge is not None]
        return with_needed([*needed, *self.chosen], self.experiments)

    def runs(self, name: str) -> list[Run]:
        """Where a variant's runs are."""
        return [Run.of(self.out, name, i) for i in range(count_runs(name, self.experiments))]

    def corpus(self, name: str) -> Texts:
        """The texts of a variant."""
        return self.corpora[self.experiments[name].data]

    def origin(self, name: str, seed: int) -> Origin:
        """What a run is made of now."""
        experiment = self.experiments[name]
        start = experiment.init_from
        if isinstance(start, Pretrained):
            began_from = self._fingerprint_of(start)
        else:
            before = None if start is None else self._run_for(start, seed).origin
            began_from = None if before is None else before.weights
        return Origin(
            title=self.file.path.stem,
            folder=str(self.file.path.resolve().parent),
            place=[*self.experiments].index(name),
            changes=tuple(self.changes.get(name, ())),
            data=self.corpus(name).fingerprint,
            code=self.file.code.of(experiment),
            began_from=began_from,
            taught_by=self._fingerprint_of_teacher(name, seed),
        )

    def _fingerprint_of_teacher(self, name: str, seed: int) -> str | None:
        """Of what a run learns from; None where there is nothing, or it is not trained yet."""
        teacher, model = self.experiments[name].teacher, teacher_model(name, self.experiments)
        if isinstance(teacher, Pretrained):
            weights = self._fingerprint_of(teacher)
        else:
            origin = None if teacher is None else self._run_for(teacher, seed).origin
            weights = None if origin is None else origin.weights
        return None if weights is None else str(Digest(weights, spec.describe(model)))

    def _fingerprint_of(self, start: Pretrained) -> str:
        if start not in self._published:  # every byte is read for it
            self._published[start] = start.fingerprint()
        return self._published[start]

    def check_folders(self) -> None:
        """Raise FolderTakenError where a run's folder holds something else.

        Texts and code are compared as well, once they are loaded.
        """
        for name in self.order:
            loaded = self.experiments[name].data in self.corpora
            for seed, run in enumerate(self.runs(name)):
                origin = self.origin(name, seed) if loaded else None
                self._differences(name, seed, run, origin)

    def _differences(self, name: str, seed: int, run: Run, origin: Origin | None) -> list[str]:
        """What a finished run that may be reused was made of otherwise than is asked now."""
        experiment = self.experiments[name].run(seed)
        if further(run, experiment) is not None:
            experiment = run.saved(experiment) or experiment
        lines = run.check(experiment, origin)
        if lines and not (self.reuse and finished(experiment, run)):
            listed = "\n  ".join(lines)
            ways = "Give another --out, or move that folder away, to train it anew"
            if finished(experiment, run):
                ways += "; --reuse takes it as it is, and the page says so"
            raise FolderTakenError(
                f"{run.folder} was made of something else; nothing was overwritten.\n  {listed}\n"
                f"{ways}"
            )
        return lines

    def _run_for(self, other: str, seed: int) -> Run:
        """The run of another variant that run `seed` of one starts from, or learns from."""
        runs = self.runs(other)  # one alone, where a published model came unchanged
        return runs[min(seed, len(runs) - 1)]

    @contextmanager
    def guarded(self, run: str) -> Iterator[None]:
        """What fails here fails alone: it is told, kept in `failures`, and others go on.

        Of several processes all meet a loss that is not finite, and end together on other errors.
        """
        try:
            yield
        except (Preempted, KeyboardInterrupt):
            raise
        except Exception as error:
            if several() and not isinstance(error, NonFiniteLossError):
                raise
            self.failures[run] = first_line(error)
            self.console.print(f"{run} failed; the others go on", style="bold red")
            if not explained(error):
                traceback.print_exception(error)

    def check_trained(self) -> None:
        """Raise ValueError where a chosen variant has a run that is not finished."""
        for name in self.chosen:
            for run in self.runs(name):
                if not finished(self.experiments[name], run):
                    raise ValueError(
                        f"{run.name} is not trained in {self.out} (lcx train); leave it out by "
                        "--only, or lcx compare trains it"
                    )

    def train(self, name: str) -> None:
        """Train each run of a variant, or go on with it, or reuse it."""
        for seed, run in enumerate(self.runs(name)):
            self._pause(run.name)
            with self.guarded(run.name), run.lock():
                self._train(name, seed, run)

    def _train(self, name: str, seed: int, run: Run) -> None:
        experiment, origin = self.experiments[name].run(seed), self.origin(name, seed)
        self._differences(name, seed, run, origin)
        if (step := further(run, experiment)) is not None:
            go_further(run, experiment, step)
            self.console.print(
                f"{run.name}: goes on to {experiment.train.steps} steps from step {step}; what it "
                f"was is kept in {run.folder / 'earlier'}"
            )
        if self._trained(name, run):
            self.console.print(f"{run.name}: trained already ({run.folder}), reused")
            return
        run.claim(experiment, origin, self.file.code.files)
        start = None
        if isinstance(experiment.init_from, Pretrained):
            start = experiment.init_from.load(experiment.model, experiment.mesh)
        elif parent := experiment.init_from:
            before = self._run_for(parent, seed)
            if before.name in self.failures:
                raise ValueError(f"it begins from {parent}, which failed")
            start = restore_plain(self.experiments[parent], before, self.console)
        teacher = self._teacher_of(name, seed)
        train(experiment, run, self.corpus(name), start, self.console, self.preemption, teacher)

    def _teacher_of(self, name: str, seed: int) -> Teacher | None:
        """What a run learns from, on the run's own mesh."""
        mesh, teacher = self.experiments[name].mesh, self.experiments[name].teacher
        model = teacher_model(name, self.experiments)
        if teacher is None or model is None:
            return None
        if isinstance(teacher, Pretrained):
            return Teacher(model, teacher.load(model, mesh))
        run = self._run_for(teacher, seed)
        if run.name in self.failures:
            raise ValueError(f"its teacher is {teacher}, which failed")
        there = replace(self.experiments[teacher], mesh=mesh)
        return Teacher(model, restore_params(there, run, self.console))

    def _trained(self, name: str, run: Run) -> bool:
        """Whether a run is finished, and its last checkpoint can be read."""
        try:
            params = restore_params(self.experiments[name], run, self.console)
        except (FileNotFoundError, CorruptCheckpointError):
            return False
        if (origin := run.origin) is not None and origin.weights is None:
            run.finish(fingerprint(params))  # it was ended between its last step and this
        return True

    def evaluate(self, name: str) -> list[Evaluation]:
        """Evaluate each run of a trained variant, or reuse its result."""
        found = []
        for seed, run in enumerate(self.runs(name)):
            if run.name not in self.failures:
                self._pause(f"the evaluation of {run.name}")
                with self.guarded(run.name):
                    found.append(self._evaluate(name, seed, run))
        return found

    def _evaluate(self, name: str, seed: int, run: Run) -> Evaluation:
        experiment, corpus = self.experiments[name], self.corpus(name)
        changed = self._differences(name, seed, run, self.origin(name, seed))
        params = restore_params(experiment, run, self.console)
        weights = fingerprint(params)
        run.finish(weights)
        code = self.file.code.of((experiment.model, experiment.evaluation))
        judge = self._judge_of(name, seed)
        judged_by = () if judge is None else (fingerprint(judge[1]),)
        parts = [corpus.fingerprint, weights, *judged_by, *code.values()]
        path = run.evaluation(experiment, parts)
        if (kept := read_result(path)) is not None:
            self.console.print(f"{run.name}: evaluated already ({path}), reused")
            if is_primary():
                path.touch()  # the page shows the newest, which may be one that --reuse took
            return cast(Evaluation, kept)
        if path.exists():
            self.console.print(f"warning: {path} cannot be read; evaluated again", style="yellow")
        draft = path.with_suffix(".draft.jsonl")
        measured, seconds = evaluate(
            experiment, params, corpus, run.name, self.console, self.preemption, draft, judge
        )
        stages = trainings(name, self.experiments)
        rows = {n: self.runs(n)[seed].read_metrics() for n in stages}
        last = {n: of_one[-1] for n, of_one in rows.items() if of_one}  # the first process has all
        model = published(name, self.experiments)
        length = cost_length(name, self.experiments)
        result = Evaluation(
            variant=name,
            seed=seed,
            weights=weights,
            changed=changed,
            protocol=spec.encode(experiment.evaluation),
            about=about(experiment.evaluation),
            data=describe_data(experiment, corpus),
            setup=setup_of(experiment) | {"changes": self.changes.get(name, [])},
            cost=cost_of(
                experiment.model,
                length,
                experiment.evaluation.contexts,
                experiment.tune,
                teacher_model(name, self.experiments),
            ),
            published=None if model is None else spec.describe(model),
            trainings=stages,
            train_len=trained_length(name, self.experiments),
            train_tokens=int(sum(row["tokens"] for row in last.values())),
            train_flops=None
            if model
            else self._flops({n: row["tokens"] for n, row in last.items()}),
            train_seconds=sum(row["seconds"] for row in last.values()),
            eval_seconds=round(seconds, 3),
            contexts=measured.contexts,
            reference=measured.reference,
            shown=measured.shown,
            environment={k: v for k, v in environment().items() if k != "diff"},
        )
        if is_primary():
            write_json(path, jsonable(result))
            draft.unlink(missing_ok=True)
        return result

    def _judge_of(self, name: str, seed: int) -> tuple[LM, Params] | None:
        """The model that an evaluation names as its judge, if it does. Of several runs, as many."""
        judge = self.experiments[name].evaluation.judge
        if judge is None:
            return None
        run = self._run_for(judge, seed)
        if run.name in self.failures:
            raise ValueError(f"it is judged by {judge}, which failed")
        params = restore_params(self.experiments[judge], run, self.console)
        return self.experiments[judge].model, params

    def _pause(self, what: str) -> None:
        """Between two runs: end here if that was asked for.

        Of several processes none is asked here: after a call before a long compilation JAX no
        longer agrees on a step. They end at the next one.
        """
        if not several() and self.preemption.reached():
            self.preemption.end(f"{what} was not begun")

    def _flops(self, tokens: dict[str, float]) -> float | None:
        """Of trainings on so many tokens each; None where a formula is missing."""
        total = 0.0
        for name, n in tokens.items():
            one, teacher = self.experiments[name], teacher_model(name, self.experiments)
            each = training_flops(one.model, one.train.length, one.tune, teacher)
            if each is None:
                return None
            total += each * n
        return total
