"""Training: one loop that reads from top to bottom."""

import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lcx.checkpoint import Checkpoints, CorruptCheckpointError
from lcx.data import Texts
from lcx.experiment import Experiment
from lcx.loss import LossSums, loss_sums
from lcx.mesh import BATCH, make_mesh, place, shardings
from lcx.positions.training import FromZero, redraw
from lcx.processes import Preempted, Preemption, first
from lcx.runs import Run
from lcx.seqpar import AXIS, CUT, WHOLE, sharded
from lcx.types import Params

Batch = dict[str, Int[Array, "B T"]]


class TrainState(NamedTuple):
    """All that a step changes."""

    params: Params
    optimizer: optax.OptState
    step: Int[Array, ""]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the last good checkpoint is kept."""


def make_step(
    experiment: Experiment, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """The training step: (state, batch) -> (state, metrics). Pure; jit it.

    The batch is cut into `accumulate` equal parts, one after the other. Loss: the mean over all
    scored tokens of the whole batch, whatever part they are in.
    """
    model, settings, shards = experiment.model, experiment.train, experiment.mesh.shards
    longest = settings.length if settings.positions is None else settings.positions.longest

    def sums_of_shard(params: Params, batch: Batch):
        lengths = jnp.full(len(batch["tokens"]), longest, jnp.int32)
        x, _ = model.hidden(
            params,
            batch["tokens"],
            batch["positions"],
            batch["segments"],
            lengths=lengths,
            shards=shards,
        )
        sums = loss_sums(model, params, x, batch["targets"], scored(batch).astype(jnp.float32))
        return jnp.stack(sums)[None]

    def loss(params: Params, batch: Batch, tokens: Float[Array, ""]):
        # one row a shard, which the sum is taken of out here
        sums = sharded(sums_of_shard, shards, (WHOLE, CUT), PartitionSpec(AXIS))(params, batch)
        sums = LossSums(*sums.sum(axis=0))
        nll = sums.nll / tokens
        return nll + settings.z_loss * sums.z2 / tokens, nll

    def step(state: TrainState, batch: Batch):
        tokens = scored(batch).sum().astype(jnp.float32)
        gradient = partial(jax.value_and_grad(loss, has_aux=True), state.params)
        if settings.accumulate == 1:
            (_, nll), gradients = gradient(batch, tokens)
        else:
            parts = jax.tree.map(lambda a: a.reshape(settings.accumulate, -1, *a.shape[1:]), batch)

            def add(total, part):
                (_, nll), gradients = gradient(part, tokens)
                return jax.tree.map(jnp.add, total, (nll, gradients)), None

            zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            (nll, gradients), _ = jax.lax.scan(add, zero, parts)
        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)  # optax forgets which tree it is
        metrics = {"loss": nll, "tokens": tokens, "grad_norm": optax.tree.norm(gradients)}
        return TrainState(params, moments, state.step + 1), metrics

    return step


def fresh_state(
    experiment: Experiment, optimizer: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
    """The state before the first step."""
    params = experiment.model.init(key)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def jit_step(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    where: TrainState,
    mesh: jax.sharding.Mesh,
) -> Any:
    """`make_step`, jitted: it takes the place of the state that it is given, which lies at `where`.

    To be called, or lowered, while the mesh is set.
    """
    metrics = NamedSharding(mesh, PartitionSpec())
    step = make_step(experiment, optimizer)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, metrics))


def scored(batch: Batch) -> Bool[Array, "B T"]:
    """Which targets count: those of no padding, and not marked as unpredictable by a -1."""
    return (batch["segments"] > 0) & (batch["targets"] >= 0)


def train(
    experiment: Experiment,
    run: Run,
    corpus: Texts,
    start: Params | None = None,
    console: Console | None = None,
    preemption: Preemption | None = None,
) -> None:
    """Train until `experiment.train.steps`, from the run's last checkpoint if it has one.

    A run killed at any moment and started again ends with the same bits as one never killed.
    `start`: parameters to begin from, in place of fresh ones. Raises NonFiniteLossError; and
    Preempted, after a checkpoint, where `preemption` says that this process has to end.
    """
    console = console or Console()
    settings = experiment.train
    optimizer = settings.optimizer.transform(settings.steps)
    mesh = make_mesh(experiment.mesh)
    places = settings.positions
    if places is None and experiment.model.positions is not None:
        places = FromZero(settings.length)

    fresh = partial(fresh_state, experiment, optimizer)
    key = jax.random.key(settings.seed)
    where = shardings(jax.eval_shape(fresh, key), mesh)
    cut = NamedSharding(mesh, BATCH)
    with jax.set_mesh(mesh), Checkpoints(run.checkpoints, _warn(console)) as checkpoints:
        state = jax.jit(fresh, out_shardings=where)(key)
        if start is not None:
            state = state._replace(params=jax.device_put(start, where.params))
        if settings.steps == 0:
            checkpoints.set_aside(after=-1)
            checkpoints.save(0, state, None)
            return
        batches = iter(corpus.batches(settings.length, settings.batch, settings.seed))
        done = 0
        if restored := checkpoints.restore(state, batches):
            done, state = restored
            checkpoints.set_aside(after=done)
            console.print(f"{run.name}: resuming at step {done} of {settings.steps}")
        step = jit_step(experiment, optimizer, where, mesh)
        log = Log(run, done, settings.optimizer.learning_rate(settings.steps))
        with log, progress(console) as bar:
            task = bar.add_task(run.name, total=settings.steps, completed=done, note="compiling")
            last = None  # the metrics of the step before, read while this one runs
            for number in range(done + 1, settings.steps + 1):
                batch = next(batches)
                if places is not None:
                    rng = np.random.default_rng((settings.seed, number))
                    placed = redraw(places, rng, batch["positions"], batch["segments"])
                    batch = batch | {"positions": placed}
                batch = {name: place(array, cut) for name, array in batch.items()}
                state, metrics = step(state, batch)
                if last is not None:
                    bar.update(task, completed=number - 1, note=log.write(number - 1, last))
                last = metrics
                told = preemption is not None and preemption.reached()
                if told or number % settings.checkpoint_every == 0 or number == settings.steps:
                    bar.update(task, completed=number, note=log.write(number, last))
                    last = None
                    checkpoints.save(number, state, batches)
                if told and number < settings.steps:
                    raise Preempted(f"{run.name}: told to end; saved at step {number}")


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
        self._recent: list[tuple[float, float]] = []

    def __enter__(self) -> "Log":
        if not first():  # another process writes it
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

    def write(self, step: int, metrics: dict[str, Float[Array, ""]]) -> str:
        """Write the metrics of a step, which waits for it; what the progress bar should say.

        Raises NonFiniteLossError before anything of that step is kept.
        """
        values = {name: float(value) for name, value in metrics.items()}
        bad = [n for n in ("loss", "grad_norm") if not math.isfinite(values[n])]
        if bad:
            raise NonFiniteLossError(
                f"{bad[0]} is {values[bad[0]]} at step {step}. The last good checkpoint is kept; "
                "a lower train.optimizer.peak or a longer warmup may help"
            )
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        self._tokens += int(values["tokens"])
        row = {
            "step": step,
            "loss": values["loss"],
            "grad_norm": values["grad_norm"],
            "learning_rate": float(jnp.asarray(self._learning_rate(step - 1))),
            "tokens": self._tokens,
            "seconds": round(self._seconds, 3),
        }
        self._file.write(json.dumps(row) + "\n")
        if self._board:
            for name in ("loss", "grad_norm", "learning_rate"):
                self._board.add_scalar(name, row[name], step)
        self._recent = [*self._recent[-20:], (self._tokens, self._seconds)]
        (t0, s0), (t1, s1) = self._recent[0], self._recent[-1]
        speed = f"{(t1 - t0) / (s1 - s0):,.0f} tokens/s" if s1 > s0 else ""
        return f"loss {values['loss']:.3f}  {speed}"


def restore_params(experiment: Experiment, run: Run, console: Console | None = None) -> Params:
    """The parameters of a finished run, on this experiment's mesh.

    Raises FileNotFoundError where the run is not finished, CorruptCheckpointError where its last
    checkpoint cannot be read.
    """
    steps = experiment.train.steps
    if not finished(experiment, run):
        raise FileNotFoundError(f"{run.name} is not trained in {run.folder.parent} (lcx train)")
    mesh = make_mesh(experiment.mesh)
    abstract = jax.eval_shape(experiment.model.init, jax.random.key(0))
    like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        abstract,
        shardings(abstract, mesh),
    )
    with Checkpoints(run.checkpoints, _warn(console or Console())) as checkpoints:
        found = checkpoints.restore({"params": like})
    if found is None or found[0] != steps:
        raise CorruptCheckpointError(
            f"checkpoint {steps} in {run.checkpoints} cannot be read; lcx train makes it again"
        )
    return found[1]["params"]


def finished(experiment: Experiment, run: Run) -> bool:
    """Whether the run has the checkpoint of its last step."""
    return (run.checkpoints / str(experiment.train.steps)).is_dir()


def progress(console: Console) -> Progress:
    """The progress bar of all long work."""
    return Progress(
        TextColumn("{task.description:<24.24}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def _warn(console: Console) -> Callable[[str], None]:
    return lambda message: console.print(f"[yellow]warning:[/] {message}", highlight=False)


def _tensorboard(folder: Path) -> Any:
    """A writer, where the extra `tensorboard` is installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
