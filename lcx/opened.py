"""A trained run, to look at from Python: its experiment, parameters, tokenizer and results."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lcx.data import Texts, Tokenizer
from lcx.evaluation.metrics import Evaluation
from lcx.experiment import Experiment
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.training.kept import open_experiment
from lcx.training.restore import restore_params, restore_plain, restore_trained
from lcx.training.runs import Run
from lcx.types import Leaves, Params

ONE_DEVICE = Mesh()


@dataclass(frozen=True)
class OpenedRun:
    """One run's folder, opened. What takes time is loaded when it is first asked for."""

    run: Run
    experiment: Experiment
    mesh: Mesh
    """Where its parameters are put."""

    @property
    def model(self) -> LM:
        """`run.model(run.params, lcx.Batch(tokens)).x` are the logits of tokens [B T]."""
        return self.experiment.model

    @cached_property
    def params(self) -> Params:
        """The parameters after the last step.

        Raises FileNotFoundError where the run is not finished.
        """
        return restore_params(replace(self.experiment, mesh=self.mesh), self.run)

    @cached_property
    def plain_params(self) -> Params:
        """Those of the plain model: of a tuned run, merged into its base's.

        Raises as `params`, and ValueError where the method of tuning cannot be merged.
        """
        return restore_plain(replace(self.experiment, mesh=self.mesh), self.run)

    @cached_property
    def trained(self) -> Leaves:
        """Of a tuned run, what was trained alone, by path. Raises ValueError for another."""
        return restore_trained(replace(self.experiment, mesh=self.mesh), self.run)

    @cached_property
    def texts(self) -> Texts:
        """What it was trained and measured on."""
        return self.experiment.data.load()

    @property
    def tokenizer(self) -> Tokenizer:
        """`encode(bytes)` and `decode(ids)`. Raises ValueError where it was trained on symbols."""
        found = self.texts.tokenizer
        if not isinstance(found, Tokenizer):
            raise ValueError(f"{self.run.name} was trained on symbols, which stand for no text")
        return found

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A dict for each training step: step, loss, grad_norm, tokens, seconds and others."""
        return self.run.read_metrics()

    @property
    def evaluations(self) -> list[Evaluation]:
        """Every result there is, by the name of its file."""
        folder = self.run.folder / "eval"
        return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def open_run(folder: str | Path, mesh: Mesh = ONE_DEVICE) -> OpenedRun:
    """Open a run's folder, such as "runs/quickstart/softmax". Reads its experiment alone.

    Classes of your own come from the experiment file that the run has kept. mesh: where its
    parameters are put, whatever mesh it was trained on; one device by default. Raises
    FileNotFoundError where the folder is no run, ValueError where its experiment cannot be read.
    """
    run = Run(Path(folder))
    return OpenedRun(run, open_experiment(run), mesh)
