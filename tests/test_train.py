"""Training: exact resume, accumulation, meshes, non-finite losses, damaged checkpoints."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lcx.evaluation.evaluate import evaluate
from lcx.experiment import Train
from lcx.losses import CrossEntropy
from lcx.optim import AdamW
from lcx.parallel.mesh import Mesh
from lcx.positions import ALiBi, DynamicNTK, Learned, NoPE, PoSE, RoPE, XPos
from lcx.spec import describe
from lcx.training.checkpoint import CorruptCheckpointError
from lcx.training.log import NonFiniteLossError
from lcx.training.loop import TrainState, fresh_state, make_step, train
from lcx.training.origin import Origin
from lcx.training.restore import finished, restore_params
from lcx.training.runs import Run
from lcx.types import Batch, Policy
from lcx.validation import validate
from tests.tiny import tiny


def trained(experiment, folder: Path, corpus=None, start=None) -> Run:
    run = Run(folder)
    run.claim(experiment, Origin(), {})
    train(experiment, run, corpus or experiment.data.load(), start, Console(quiet=True))
    return run


@pytest.fixture(scope="module")
def experiment(texts):
    return tiny(f"{texts}/*.txt")


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory) -> Run:
    """One run to the end, never interrupted."""
    return trained(experiment, tmp_path_factory.mktemp("whole") / "softmax")


def same_bits(a, b) -> bool:
    return all(
        np.array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_metrics_have_a_line_a_step_and_the_loss_falls(run, experiment):
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[0]["loss"] == pytest.approx(np.log(257), abs=0.1)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    tokens = np.diff([0, *(row["tokens"] for row in rows)])
    assert ((tokens > 0) & (tokens <= 4 * 48)).all()
    assert rows[0]["learning_rate"] == pytest.approx(experiment.train.optimizer.peak / 2)
    assert finished(experiment, run)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(run, experiment, texts, tmp_path):
    folder = tmp_path / "out"
    command = [sys.executable, "-c", "from lcx.command.cli import main; main()", "train"]
    command += [str(Path(__file__).parent / "tiny.py"), "--out", str(folder), "--only", "softmax"]
    environment = os.environ | {"TINY_TEXTS": f"{texts}/*.txt", "PYTHONPATH": os.getcwd()}
    killed = Run(folder / "softmax")
    for lines in (3, 6, 9):  # before the first checkpoint of step 4, and between the others
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while len(killed.read_metrics()) < lines:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not finished(experiment, killed)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert same_bits(restore_params(experiment, killed), restore_params(experiment, run))
    losses = [[row["loss"] for row in r.read_metrics()] for r in (killed, run)]
    assert losses[0] == losses[1]
    starts = json.loads((killed.folder / "environment.json").read_text())
    assert len(starts) == 4


def batch_of(experiment) -> Batch:
    settings = experiment.train
    stream = iter(experiment.data.load().batches(settings.length, settings.batch, 0))
    return Batch(**jax.tree.map(jnp.asarray, next(stream)))


def one_step(experiment):
    optimizer = experiment.train.optimizer.transform(10)
    params = jax.jit(experiment.model.init)(jax.random.key(0))
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    return jax.jit(make_step(experiment, optimizer))(state, batch_of(experiment))


def test_accumulation_changes_nothing_but_rounding(experiment):
    whole, metrics = one_step(experiment)
    parts, metrics_of_parts = one_step(
        replace(experiment, train=replace(experiment.train, accumulate=4))
    )
    for name in ("loss", "tokens", "grad_norm"):
        np.testing.assert_allclose(metrics_of_parts[name], metrics[name], rtol=1e-5)
    # Adam divides by the gradient's size, so rounding shows where a gradient is nearly zero
    for a, b in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.slow
def test_512_equal_parts_in_bf16_have_the_gradient_of_one(experiment):
    """A sum in bf16 stops at 256 of them, and the norm came out 27% low."""
    model = replace(experiment.model, repeats=1, policy=Policy(params="bfloat16"))
    optimizer = AdamW(warmup=0, weight_decay=0.0)
    row = jnp.arange(8, dtype=jnp.int32)[None] % 5

    def step(parts: int):
        batch = Batch(jnp.repeat(row, parts, axis=0), targets=jnp.repeat(row + 1, parts, axis=0))
        settings = Train(length=8, batch=parts, accumulate=parts, optimizer=optimizer)
        of = replace(experiment, model=model, train=settings)
        transform = optimizer.transform(10)
        state = jax.jit(partial(fresh_state, of, transform))(jax.random.key(0))
        return jax.jit(make_step(of, transform))(state, batch)

    (one, alone), (many, together) = step(1), step(512)
    assert together["grad_norm"].dtype == together["loss"].dtype == jnp.float32
    np.testing.assert_allclose(together["grad_norm"], alone["grad_norm"], rtol=1e-5)
    assert {a.dtype for a in jax.tree.leaves(many.params)} == {jnp.dtype("bfloat16")}
    for a, b in zip(jax.tree.leaves(many.optimizer), jax.tree.leaves(one.optimizer), strict=True):
        assert a.dtype == b.dtype != jnp.bfloat16
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9)  # measured: 2e-5


def test_z_loss_pulls_the_normaliser_and_is_not_reported(experiment):
    settings = replace(experiment.train, loss=CrossEntropy(z=0.1))
    _, plain = one_step(experiment)
    _, pulled = one_step(replace(experiment, train=settings))
    assert pulled["loss"] == plain["loss"]
    assert abs(pulled["grad_norm"] - plain["grad_norm"]) > 0.01


@pytest.mark.parametrize("mesh", [Mesh(data=4), Mesh(data=2, fsdp=2, model=2)], ids=str)
def test_losses_on_a_mesh_are_those_on_one_device(experiment, run, mesh, tmp_path):
    there = trained(replace(experiment, mesh=mesh), tmp_path / "meshed")
    for here, alone in zip(there.read_metrics(), run.read_metrics(), strict=True):
        assert here["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert here["tokens"] == alone["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("position", [ALiBi(), XPos(), RoPE(scaling=DynamicNTK(16))], ids=describe)
def test_position_schemes_on_a_mesh_are_those_on_one_device(experiment, position, tmp_path):
    model = experiment.model
    mixer = replace(model.pattern[0].mixer, position=position)
    model = replace(model, pattern=(replace(model.pattern[0], mixer=mixer),))
    settings = replace(experiment.train, steps=3)
    here = replace(experiment, model=model, train=settings)
    there = replace(here, mesh=Mesh(data=2, fsdp=2, model=2))
    alone, meshed = (trained(e, tmp_path / n) for e, n in ((here, "alone"), (there, "meshed")))
    for a, b in zip(meshed.read_metrics(), alone.read_metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.slow
def test_training_positions_resume_with_the_same_bits(experiment, tmp_path):
    settings = replace(experiment.train, steps=6, checkpoint_every=3, positions=PoSE(longest=300))
    asked = replace(experiment, train=settings)
    whole = trained(asked, tmp_path / "whole")
    part = trained(asked, tmp_path / "part")
    shutil.rmtree(part.checkpoints / "6")
    train(asked, part, asked.data.load(), None, Console(quiet=True))
    assert same_bits(restore_params(asked, part), restore_params(asked, whole))
    plain = trained(replace(asked, train=replace(settings, positions=None)), tmp_path / "plain")
    losses = [[row["loss"] for row in r.read_metrics()] for r in (whole, plain)]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) > 1e-4


@pytest.mark.slow
def test_learned_positions_train_on_documents_longer_than_their_table(experiment, tmp_path):
    """The rest of a long document, in another row, is counted from 0 again."""
    mixer = replace(experiment.model.pattern[0].mixer, position=NoPE())
    pattern = (replace(experiment.model.pattern[0], mixer=mixer),)
    model = replace(experiment.model, pattern=pattern, positions=Learned(48))
    protocol = replace(experiment.evaluation, contexts=(16, 40))  # and 8 targets: all there are
    fits = replace(experiment, model=model, evaluation=protocol)
    corpus = experiment.data.load()
    validate("learned", fits, {}, corpus)
    params = restore_params(fits, trained(fits, tmp_path / "learned"))
    measured, _ = evaluate(fits, params, corpus, "learned", Console(quiet=True))
    assert all(np.isfinite(score["ppl"]) for score in measured.contexts)
    with pytest.raises(ValueError, match="for texts of 48 tokens, and there are some of 200"):
        validate("learned", replace(fits, evaluation=experiment.evaluation), {}, corpus)


def test_non_finite_loss_stops_and_keeps_the_last_checkpoint(experiment, tmp_path):
    wild = AdamW(peak=1e30, warmup=0, schedule="constant")
    settings = Train(length=48, batch=4, steps=9, checkpoint_every=1, optimizer=wild)
    with pytest.raises(NonFiniteLossError, match="at step 2"):
        trained(replace(experiment, train=settings), tmp_path / "wild")
    assert (tmp_path / "wild" / "checkpoints" / "1").is_dir()
    assert len(Run(tmp_path / "wild").read_metrics()) == 1


def damage(run: Run, step: int) -> None:
    for path in (run.checkpoints / str(step)).rglob("*"):
        if path.is_file() and path.stat().st_size > 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_falls_back_and_says_so(experiment, run, tmp_path, capsys):
    short = replace(experiment, train=replace(experiment.train, steps=8))
    broken = trained(short, tmp_path / "broken")
    expected = restore_params(short, broken)
    damage(broken, 8)
    with pytest.raises(CorruptCheckpointError, match="checkpoint 8"):
        restore_params(short, broken)
    train(short, broken, short.data.load(), None, Console(width=500))
    said = capsys.readouterr().out
    assert "checkpoint 8" in said
    assert "cannot be read" in said
    assert "resuming at step 4 of 8" in said
    assert same_bits(restore_params(short, broken), expected)
    assert len(list((broken.folder / "unreadable").iterdir())) == 1
    damage(broken, 4)
    damage(broken, 8)
    with pytest.raises(CorruptCheckpointError, match="none of the checkpoints"):
        train(short, broken, short.data.load(), None, Console(quiet=True))
