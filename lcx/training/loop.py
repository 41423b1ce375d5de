"""Training: one loop that reads from top to bottom."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key
from rich.console import Console

from lcx.adapters.split import begin, frozen, tuned
from lcx.data import PairedTexts, Texts, places
from lcx.experiment import Experiment, trained_on
from lcx.logits import over_logits
from lcx.losses import LossSums, OfTeacher, OfWritten, Teacher, needs_reference
from lcx.optim import in_fp32
from lcx.parallel.mesh import BATCH, make_mesh, place, shardings
from lcx.parallel.preemption import Preemption
from lcx.parallel.seqpar import AXIS, REPLICATED, SHARDED, sharded
from lcx.positions.training import FromZero, redraw
from lcx.progress import plain_console, progress, warner
from lcx.training.checkpoint import Checkpoints
from lcx.training.fingerprint import fingerprint
from lcx.training.further import worth_keeping
from lcx.training.log import Log
from lcx.training.reference import with_reference
from lcx.training.runs import Run
from lcx.types import Aux, Batch, Leaves, Params

VALIDATED = 2**15
"""Tokens of the validation split that a loss is taken of."""


class TrainState(NamedTuple):
    """All that a step changes."""

    params: Params | Leaves
    """All; or, under `Experiment.tune`, those that are trained, by path."""
    optimizer: optax.OptState
    step: Int[Array, ""]


def make_loss(experiment: Experiment) -> Callable[..., tuple[LossSums, Aux]]:
    """(parameters, batch, teacher) -> the loss's sums, and layers' reports, of all shards. Pure."""
    model, settings, shards = experiment.model, experiment.train, experiment.mesh.shards
    longest = settings.length if settings.positions is None else settings.positions.longest

    def of_shard(params: Params, batch: Batch, teacher: Teacher | None) -> tuple[LossSums, Aux]:
        batch = batch._replace(lengths=jnp.full(batch.tokens.shape, longest, jnp.int32))
        out, over = model.hidden(params, batch, shards=shards), partial(over_logits, model, params)
        if teacher is not None:
            over = teacher.beside(over, batch, shards)
        sums = settings.loss(out.x, batch, over, shards)
        # one row a shard, which the sum is taken of out there
        return jax.tree.map(lambda a: a[None], (sums, out.aux))

    specs = (REPLICATED, SHARDED, REPLICATED)

    def sums(params: Params, batch: Batch, teacher: Teacher | None = None) -> tuple[LossSums, Aux]:
        each = sharded(of_shard, shards, specs, PartitionSpec(AXIS))(params, batch, teacher)
        return jax.tree.map(lambda a: a.sum(axis=0), each)

    return sums


def make_step(
    experiment: Experiment, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """The training step: (state, batch, frozen parameters, teacher) -> (state, metrics). Pure.

    The batch is cut into `accumulate` equal parts, one after the other. Loss: that of the whole
    batch, whatever part a token is in; what is random depends on the seed, the step and the token.
    """
    settings, sums_of, optimizer = experiment.train, make_loss(experiment), in_fp32(optimizer)
    _, seed = jax.random.split(jax.random.key(settings.seed))  # parameters are made from the seed

    def loss(
        trained: Params | Leaves,
        frozen: Leaves,
        teacher: Teacher | None,
        batch: Batch,
        divisor: Float[Array, ""],
        real: Float[Array, ""],
        writes: Bool[Array, ""] | None,
    ):
        params = whole(experiment, trained, frozen)
        sums, aux = sums_of(params, batch, teacher)
        minimised = sums.minimised / divisor
        if isinstance(settings.loss, OfWritten):
            own = partial(settings.loss.of_written, experiment.model, params, batch)
            minimised += jax.lax.cond(writes, own, lambda: jnp.zeros(())) / divisor
        if aux.penalty is not None:
            minimised += aux.penalty / real
        reports = {name: a / real for name, a in aux.reports.items()}
        reports |= {name: a / divisor for name, a in (sums.reports or {}).items()}
        return minimised, (sums.shown / divisor, reports)

    @experiment.model.policy.precise()  # the model says so of its forward pass alone
    def step(
        state: TrainState,
        batch: Batch,
        frozen: Leaves | None = None,
        teacher: Teacher | None = None,
    ):
        key = jax.random.fold_in(seed, state.step)
        batch = batch._replace(keys=jax.random.split(key, batch.tokens.shape))
        divisor, real = settings.loss.divisor(batch), batch.real.sum().astype(jnp.float32)
        writes = None
        if isinstance(settings.loss, OfWritten):
            own_key = jax.random.fold_in(key, 2**32 - 1)  # tokens have those of small numbers
            writes = jax.random.bernoulli(own_key, settings.loss.rate)

        def gradient(part: Batch):
            take = jax.value_and_grad(loss, has_aux=True)
            given = frozen or {}, teacher, part, divisor, real, writes
            (_, shown), gradients = take(state.params, *given)
            # parts add up in fp32, and so does the norm, whatever parameters are stored in
            return shown, optax.tree.cast(gradients, jnp.float32)

        if settings.accumulate == 1:
            (shown, reports), gradients = gradient(batch)
        else:
            parts = jax.tree.map(lambda a: a.reshape(settings.accumulate, -1, *a.shape[1:]), batch)
            one = jax.eval_shape(gradient, jax.tree.map(lambda a: a[0], parts))
            zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), one)

            def add(total, part: Batch):
                return jax.tree.map(jnp.add, total, gradient(part)), None

            ((shown, reports), gradients), _ = jax.lax.scan(add, zero, parts)
        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)  # optax forgets which tree it is
        metrics = {
            "loss": shown,
            "tokens": batch.scored.sum().astype(jnp.float32),
            "grad_norm": optax.tree.norm(gradients),
            "reports": reports,
        }
        return TrainState(params, moments, state.step + 1), metrics

    return step


def make_validation(experiment: Experiment) -> Callable[[Params, Batch], Float[Array, ""]]:
    """(parameters, N batches, stacked) -> the loss that is shown, of all together. Pure."""
    loss = experiment.train.loss
    loss = loss.alone if isinstance(loss, OfTeacher) else loss
    sums_of = make_loss(replace(experiment, train=replace(experiment.train, loss=loss)))

    def validation(params: Params, batches: Batch):
        shown = jax.lax.map(lambda batch: sums_of(params, batch)[0].shown, batches)
        return shown.sum() / jax.vmap(loss.divisor)(batches).sum()

    return validation


def fresh_state(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    start: Params | None = None,
) -> TrainState:
    """The state before the first step, from parameters `start` in place of fresh ones."""
    params: Any = experiment.model.init(key) if start is None else start
    if experiment.tune is not None:
        own = jax.random.fold_in(key, 1)
        params = begin(experiment.tune, experiment.model, params, own)
    return TrainState(params, in_fp32(optimizer).init(params), jnp.zeros((), jnp.int32))


def held(experiment: Experiment, start: Params | None) -> Leaves:
    """What no step changes, of the parameters that are tuned; nothing where all are trained."""
    if experiment.tune is None:
        return {}
    if start is None:
        raise ValueError("tune: few parameters are trained of those to start from, and none are")
    return frozen(experiment.tune, experiment.model, start)


def whole(experiment: Experiment, trained: Params | Leaves, frozen: Leaves) -> Params:
    """The tree that the model reads."""
    if isinstance(trained, Params):
        return trained
    assert experiment.tune is not None
    return tuned(experiment.tune, experiment.model, trained, frozen)


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


def train(
    experiment: Experiment,
    run: Run,
    corpus: Texts,
    start: Params | None = None,
    console: Console | None = None,
    preemption: Preemption | None = None,
    teacher: Teacher | None = None,
) -> None:
    """Train until `experiment.train.steps`, from the run's last checkpoint if it has one.

    A run killed at any moment and started again ends with the same bits as one never killed.
    `start`: parameters to begin from, in place of fresh ones. `teacher`: of a loss that takes one.
    Raises NonFiniteLossError; and Preempted, after a checkpoint, where `preemption` says that this
    process has to end.
    """
    console = console or plain_console()
    if experiment.as_published and start is not None:
        run.finish(fingerprint(start))
        return
    settings = experiment.train
    if experiment.teacher is not None and teacher is None:
        raise ValueError(f"train.loss: {type(settings.loss).__name__} needs its teacher")
    optimizer = settings.optimizer.transform(settings.steps)
    mesh = make_mesh(experiment.mesh)
    fresh = partial(fresh_state, experiment, optimizer)
    key = jax.random.key(settings.seed)
    where = shardings(jax.eval_shape(fresh, key), mesh)
    cut = NamedSharding(mesh, BATCH)
    keeps = worth_keeping(settings.optimizer, settings.steps) if settings.steps else None
    checkpointing = Checkpoints(run.checkpoints, warner(console), always=keeps)
    with jax.set_mesh(mesh), checkpointing as checkpoints:
        given = None if start is None else jax.device_put(start, shardings(start, mesh))
        rest = held(experiment, given)
        state = jax.jit(fresh, out_shardings=where)(key, given if rest else None)
        if given is not None and not rest:
            state = state._replace(params=given)
        read = partial(whole, experiment, frozen=rest)
        if settings.steps == 0:
            checkpoints.set_aside(after=-1)
            checkpoints.save(0, state, None)
            run.finish(fingerprint(read(state.params)))
            return
        teacher = jax.device_put(teacher, shardings(teacher, mesh))
        corpus = trained_on(settings.loss, corpus)
        if needs_reference(settings.loss) and isinstance(corpus, PairedTexts):
            corpus = with_reference(experiment, run, corpus, read(state.params), mesh)
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
                batch = Batch(**{name: place(array, cut) for name, array in batch.items()})
                state, metrics = step(state, batch, rest, teacher)
                if last is not None:
                    bar.update(task, completed=number - 1, note=log.write(number - 1, last))
                last = metrics
                if validation is not None and settings.evaluates(number):
                    jax.block_until_ready(metrics)
                    with log.pause():
                        last = metrics | {"validation_loss": validation.loss(read(state.params))}
                ending = preemption is not None and preemption.reached()
                if ending or settings.saves(number) or number == keeps:
                    bar.update(task, completed=number, note=log.write(number, last))
                    last = None
                    checkpoints.save(number, state, batches)
                if ending and preemption is not None and number < settings.steps:
                    checkpoints.wait()
                    preemption.end(f"{run.name}: saved at step {number} of {settings.steps}")
        run.finish(fingerprint(read(state.params)))


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
        there = places(corpus, settings.length, "validation")
        wanted = VALIDATED if there is None else min(VALIDATED, there)
        count = max(1, wanted // (settings.rows * settings.length))
        stream = iter(corpus.batches(settings.length, settings.rows, 0, split="validation"))
        rows = [positioned(experiment, next(stream), (0, i)) for i in range(count)]
        where = NamedSharding(mesh, PartitionSpec(None, *BATCH))
        stacked = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
        self._rows = Batch(**{name: place(array, where) for name, array in stacked.items()})
        self._loss: Callable = jax.jit(
            make_validation(experiment), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    def loss(self, params: Params) -> float:
        """The loss that is shown. To be called while the mesh is set."""
        return float(self._loss(params, self._rows))
