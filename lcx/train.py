"""Training: one loop that reads from top to bottom."""

from collections.abc import Callable
from functools import partial
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
from lcx.log import Log
from lcx.loss import LossSums, loss_sums
from lcx.mesh import BATCH, make_mesh, place, shardings
from lcx.positions.training import FromZero, redraw
from lcx.processes import Preempted, Preemption
from lcx.runs import Run
from lcx.seqpar import AXIS, CUT, WHOLE, sharded
from lcx.types import Params

Batch = dict[str, Int[Array, "B T"]]

VALIDATED = 2**15
"""Tokens of the validation split that a loss is taken of."""


class TrainState(NamedTuple):
    """All that a step changes."""

    params: Params
    optimizer: optax.OptState
    step: Int[Array, ""]


def make_loss(experiment: Experiment) -> Callable[[Params, Batch], LossSums]:
    """(parameters, batch) -> sums over its scored tokens, of all shards. Pure."""
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

    def sums(params: Params, batch: Batch) -> LossSums:
        # one row a shard, which the sum is taken of out here
        each = sharded(sums_of_shard, shards, (WHOLE, CUT), PartitionSpec(AXIS))(params, batch)
        return LossSums(*each.sum(axis=0))

    return sums


def make_step(
    experiment: Experiment, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """The training step: (state, batch) -> (state, metrics). Pure; jit it.

    The batch is cut into `accumulate` equal parts, one after the other. Loss: the mean over all
    scored tokens of the whole batch, whatever part they are in.
    """
    settings, sums_of = experiment.train, make_loss(experiment)

    def loss(params: Params, batch: Batch, tokens: Float[Array, ""]):
        sums = sums_of(params, batch)
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


def make_validation(
    experiment: Experiment,
) -> Callable[[Params, dict[str, Int[Array, "N B T"]]], Float[Array, ""]]:
    """(parameters, batches) -> nats a scored token, of N batches one after the other. Pure."""
    sums_of = make_loss(experiment)

    def validation(params: Params, batches: dict[str, Int[Array, "N B T"]]):
        sums = jax.lax.map(lambda batch: sums_of(params, batch), batches)
        return sums.nll.sum() / sums.tokens.sum()

    return validation


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
        validation = Validation(experiment, corpus, mesh) if settings.evaluate_every else None
        log = Log(run, done, settings.optimizer.learning_rate(settings.steps))
        with log, progress(console) as bar:
            task = bar.add_task(run.name, total=settings.steps, completed=done, note="compiling")
            last = None  # the metrics of the step before, read while this one runs
            for number in range(done + 1, settings.steps + 1):
                batch = positioned(experiment, next(batches), (settings.seed, number))
                batch = {name: place(array, cut) for name, array in batch.items()}
                state, metrics = step(state, batch)
                if last is not None:
                    bar.update(task, completed=number - 1, note=log.write(number - 1, last))
                last = metrics
                if validation is not None and settings.evaluates(number):
                    jax.block_until_ready(metrics)
                    with log.pause():
                        last = metrics | {"validation_loss": validation.loss(state.params)}
                told = preemption is not None and preemption.reached()
                if told or number % settings.checkpoint_every == 0 or number == settings.steps:
                    bar.update(task, completed=number, note=log.write(number, last))
                    last = None
                    checkpoints.save(number, state, batches)
                if told and number < settings.steps:
                    raise Preempted(f"{run.name}: told to end; saved at step {number}")


def positioned(
    experiment: Experiment, batch: dict[str, Any], seed: tuple[int, ...]
) -> dict[str, Any]:
    """A batch with its positions drawn from the seed, where a training draws them."""
    places = experiment.train.positions
    if places is None and experiment.model.positions is not None:
        places = FromZero(experiment.train.length)
    if places is None:
        return batch
    placed = redraw(places, np.random.default_rng(seed), batch["positions"], batch["segments"])
    return batch | {"positions": placed}


class Validation:
    """The loss on the validation split: of the same rows at each step, whatever the run's seed.

    About `VALIDATED` tokens, or as many as the split has, in rows of the training's length, at
    positions such as the training's.
    """

    def __init__(self, experiment: Experiment, corpus: Texts, mesh: jax.sharding.Mesh):
        settings = experiment.train
        there = corpus.tokens("validation")
        wanted = VALIDATED if there is None else min(VALIDATED, there)
        count = max(1, wanted // (settings.rows * settings.length))
        stream = iter(corpus.batches(settings.length, settings.rows, 0, split="validation"))
        rows = [positioned(experiment, next(stream), (0, i)) for i in range(count)]
        where = NamedSharding(mesh, PartitionSpec(None, *BATCH))
        self._rows = {
            name: place(np.stack([np.asarray(row[name]) for row in rows]), where)
            for name in rows[0]
        }
        self._loss: Callable = jax.jit(
            make_validation(experiment), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    def loss(self, params: Params) -> float:
        """Nats a scored token. To be called while the mesh is set."""
        return float(self._loss(params, self._rows))


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
