"""Training on pairs: the start, the reference, accumulation, meshes, resume, what is refused."""

import json
import math
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lcx.adapters import LoRA
from lcx.data import Data, Pairs
from lcx.experiment import Experiment, Train, trained_on, with_vocabulary
from lcx.losses import DPO, CrossEntropy
from lcx.mixers import SoftmaxAttention
from lcx.optim import AdamW
from lcx.parallel.mesh import Mesh, make_mesh
from lcx.planning.compiled import compile_step
from lcx.positions import PoSE
from lcx.protocols import SameTargets
from lcx.training import reference
from lcx.training.loop import train
from lcx.training.origin import Origin
from lcx.training.restore import restore_params
from lcx.training.runs import Run
from lcx.types import Batch
from lcx.validation import validate
from tests.tiny import model

STEPS = 4


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs = [
        {"prompt": f"{i}?", "chosen": f"It is {2 * i}.", "rejected": "No." + "." * (i % 7)}
        for i in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, pairs)))
    rate = AdamW(peak=3e-3, warmup=1)
    made = Experiment(
        model=model(SoftmaxAttention(heads=2)),
        data=Data(Pairs(str(path)), validation=0.2, test=0.2, alike=None),
        train=Train(48, 8, STEPS, rate, DPO(beta=0.5), checkpoint_every=2, evaluate_every=STEPS),
        evaluation=SameTargets(contexts=(4, 8), span=4),
        init_from="base",
    )
    return with_vocabulary(made, made.data.load())


@pytest.fixture(scope="module")
def start(experiment):
    return jax.jit(experiment.model.init)(jax.random.key(7))


def trained(experiment, folder, start) -> Run:
    run = Run(folder)
    if not folder.exists():
        run.claim(experiment, Origin(), {})
    begin = jax.tree.map(jnp.copy, start)  # a training takes the place of what it begins from
    train(experiment, run, experiment.data.load(), begin, Console(quiet=True))
    return run


@pytest.fixture(scope="module")
def run(experiment, start, tmp_path_factory) -> Run:
    return trained(experiment, tmp_path_factory.mktemp("runs") / "dpo", start)


def test_training_starts_at_ln_2_and_raises_the_lead(run):
    rows = run.read_metrics()
    assert abs(rows[0]["loss"] - math.log(2)) < 1e-6
    assert abs(rows[0]["reports"]["lead"][0]) < 1e-6
    leads = [row["reports"]["lead"][0] for row in rows]
    assert leads == sorted(leads)
    assert leads[-1] > 0.05
    assert rows[-1]["reports"]["preferred"] == [1.0]
    assert rows[-1]["validation_loss"] < math.log(2) - 0.02


def test_the_reference_is_that_of_the_first_parameters(experiment, start, run):
    """By the logits of each row, in float64."""
    (path,) = (run.folder / "reference").glob("train-*.npy")
    rows, kept = experiment.data.load().rows(48, "train"), np.load(path)
    pairs = [rows[index] for index in range(len(rows))]
    joined = {name: np.concatenate([pair[name] for pair in pairs]) for name in pairs[0]}
    logits = np.asarray(jax.jit(experiment.model)(start, Batch(**joined)).x, np.float64)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = joined["targets"]
    picked = np.take_along_axis(scores, np.maximum(targets, 0)[..., None], -1)[..., 0]
    expected = np.where(targets >= 0, picked, 0)[joined["segments"] > 0]
    np.testing.assert_allclose(kept, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_few_parameters_are_tuned_from_ln_2(experiment, start, tmp_path):
    settings = replace(experiment.train, evaluate_every=None)
    tuned = replace(experiment, train=settings, tune=LoRA(rank=2))
    rows = trained(tuned, tmp_path / "dpo", start).read_metrics()
    assert abs(rows[0]["loss"] - math.log(2)) < 1e-6
    assert rows[-1]["reports"]["lead"][0] > 0


def test_a_run_that_is_ended_goes_on_with_the_same_bits(
    experiment, start, run, tmp_path, monkeypatch
):
    part = Run(tmp_path / "dpo")
    shutil.copytree(run.folder, part.folder)
    shutil.rmtree(part.checkpoints / str(STEPS))
    monkeypatch.setattr(reference, "_computed", None)  # it is there already
    trained(experiment, part.folder, start)
    a, b = (jax.tree.leaves(restore_params(experiment, r)) for r in (run, part))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_another_start_has_another_reference(experiment, start, tmp_path, monkeypatch):
    short = replace(experiment, train=replace(experiment.train, evaluate_every=None))
    other = jax.tree.map(lambda a: a * 1.1, start)
    run, corpus, mesh = Run(tmp_path), experiment.data.load(), make_mesh(Mesh())
    calls = []

    def computed(*arguments):
        calls.append(arguments)
        return np.zeros(1, np.float32)

    monkeypatch.setattr(reference, "_computed", computed)
    with jax.set_mesh(mesh):
        for params in (start, other, start, other):
            reference.with_reference(short, run, corpus, params, mesh)
    assert len(calls) == len([*(tmp_path / "reference").glob("*.npy")]) == 2


@pytest.mark.parametrize(
    ("accumulate", "mesh"),
    [(2, Mesh()), pytest.param(2, Mesh(data=2, seq=2), marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("loss", [DPO(beta=0.5), DPO(2.0, False, True, 0.5)], ids=str)
def test_losses_do_not_depend_on_how_a_batch_is_cut(
    experiment, start, loss, accumulate, mesh, tmp_path
):
    settings = replace(experiment.train, steps=2, loss=loss, evaluate_every=None)
    alone = replace(experiment, train=settings)
    cut = replace(alone, train=replace(settings, accumulate=accumulate), mesh=mesh)
    runs = [trained(e, tmp_path / n, start) for e, n in ((alone, "alone"), (cut, "cut"))]
    # measured: 6e-7, 8e-7 and 7e-7
    for a, b in zip(*(run.read_metrics() for run in runs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=4e-6)
        assert a["reports"]["lead"] == pytest.approx(b["reports"]["lead"], abs=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 7}, r"batch: 7 rows, in 1 x 1 parts .*: a multiple of 2 does"),
        ({"batch": 6, "accumulate": 2}, r"batch: 6 rows, in 2 x 1 parts"),
        ({"positions": PoSE(96)}, r"positions: PoSE\(longest=96\) draws positions anew"),
        ({"length": 16}, r"pairs do not fit into rows of 16 tokens"),
    ],
)
def test_what_does_not_fit_pairs(experiment, change, message):
    asked = replace(experiment, train=replace(experiment.train, **change))
    with pytest.raises(ValueError, match=message):
        validate("a", asked, {"a": asked, "base": experiment}, experiment.data.load())


def test_a_reference_has_to_be_somewhere(experiment, texts):
    corpus = experiment.data.load()
    fresh = replace(experiment, init_from=None)
    with pytest.raises(ValueError, match=r"DPO\(reference=True\) compares with the parameters"):
        validate("a", fresh, {"a": fresh}, corpus)
    free = replace(fresh, train=replace(fresh.train, loss=DPO(reference=False)))
    validate("a", free, {"a": free}, corpus)
    text = Data().load()
    with pytest.raises(ValueError, match=r"DPO compares two answers to a prompt, which the data"):
        validate("a", fresh, {"a": fresh}, text)


def test_a_loss_of_tokens_reads_the_preferred_answers(experiment):
    corpus = experiment.data.load()
    read = trained_on(CrossEntropy(), corpus)
    assert read is corpus.preferred
    assert trained_on(DPO(), corpus) is corpus
    names = read.documents("train").names
    assert len(names) == len(corpus.documents("train")) // 2
    assert all(name.endswith("/chosen") for name in names)
    plain = replace(experiment, train=Train(length=16, steps=3), init_from=None)
    validate("a", plain, {"a": plain}, corpus)


def test_a_step_on_pairs_is_planned(experiment):
    _, _, batch, *_ = compile_step(experiment)
    assert batch.reference.shape == (8, 48)
