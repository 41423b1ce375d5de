"""What a training run says as it goes: a line a step, in a file and in TensorBoard."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from lcx.parallel.processes import is_primary
from lcx.training.runs import Run
from lcx.training.speed import speed_of


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the last good checkpoint is kept."""


class Log:
    """metrics.jsonl: a line for each step, read back when a run resumes. A context manager."""

    def __init__(self, run: Run, done: int, learning_rate: optax.Schedule):
        rows = [row for row in run.read_metrics() if row["step"] <= done]
        self._folder = run.folder
        self._path = run.folder / "metrics.jsonl"
        self._rows = rows
        self._learning_rate = learning_rate
        self._tokens = rows[-1]["tokens"] if rows else 0
        self._seconds = rows[-1]["seconds"] if rows else 0.0
        self._clock = time.perf_counter()
        self._recent: list[dict[str, float]] = []
        self._validation = ""

    def __enter__(self) -> "Log":
        if not is_primary():  # another process writes it
            self._file, self._board = Path(os.devnull).open("w"), None
            return self
        # the steps after the checkpoint are about to be made again, with the same result
        draft = self._path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        draft.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        self._board = _tensorboard(self._folder)
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        if self._board:
            self._board.close()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time that is not the training's."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def write(self, step: int, metrics: Mapping[str, Any]) -> str:
        """Write the metrics of a step, which waits for it; what the progress bar should say.

        metrics: numbers; and `reports`, what layers report, arrays by name.

        Raises NonFiniteLossError before anything of that step is kept.
        """
        values = {name: float(value) for name, value in metrics.items() if name != "reports"}
        bad = [n for n in values if not math.isfinite(values[n])]
        if bad:
            raise NonFiniteLossError(
                f"{bad[0]} is {values[bad[0]]} at step {step}. The last good checkpoint is kept; "
                "a lower train.optimizer.peak or a longer warmup may help"
            )
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        self._tokens += int(values["tokens"])
        row: dict[str, Any] = {
            "step": step,
            "loss": values["loss"],
            "grad_norm": values["grad_norm"],
            "learning_rate": float(jnp.asarray(self._learning_rate(step - 1))),
            "tokens": self._tokens,
            "seconds": round(self._seconds, 6),
        }
        shown = ["loss", "grad_norm", "learning_rate"]
        if "validation_loss" in values:
            row["validation_loss"] = values["validation_loss"]
            shown.append("validation_loss")
            self._validation = f"  validation {values['validation_loss']:.3f}"
        if reports := metrics.get("reports"):
            row["reports"] = {name: np.asarray(a).tolist() for name, a in reports.items()}
        self._file.write(json.dumps(row) + "\n")
        if self._board:
            for name in shown:
                self._board.add_scalar(name, row[name], step)
            for name, each in row.get("reports", {}).items():
                for i, value in enumerate(each):  # a line for each layer that reports it
                    self._board.add_scalar(f"{name}/{i}", np.mean(value), step)
        self._recent = [*self._recent[-20:], {"tokens": self._tokens, "seconds": self._seconds}]
        # What is compiled beside the step itself slows the second, which three outvote.
        speed = speed_of([self._recent]) if len(self._recent) > 3 else None
        shown_speed = f"{speed.median:,.0f} tokens/s" if speed else ""
        return f"loss {values['loss']:.3f}{self._validation}  {shown_speed}"


def _tensorboard(folder: Path) -> Any:
    """A writer, where the extra `tensorboard` is installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
