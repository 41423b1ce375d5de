"""The loss on the validation split while training: which rows, when, and what is refused."""

from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from rich.console import Console

from lcx.data import MQAR
from lcx.experiment import Train
from lcx.positions import PoSE
from lcx.protocols import Recall
from lcx.training import loop as module
from lcx.training.loop import Validation, train
from lcx.training.origin import Origin
from lcx.training.restore import restore_params
from lcx.training.runs import Run
from lcx.types import Batch
from lcx.validation import validate
from tests.tiny import tiny


@pytest.fixture(scope="module")
def experiment(texts):
    small = tiny(f"{texts}/*.txt")
    settings = replace(small.train, steps=3, checkpoint_every=2, evaluate_every=2)
    return replace(small, train=settings)


def trained(experiment, folder) -> Run:
    run = Run(folder)
    run.claim(experiment, Origin(), {})
    train(experiment, run, experiment.data.load(), None, Console(quiet=True))
    return run


def expected_loss(experiment, params) -> float:
    """Of the rows that every run is validated on, by the logits of each; in float64."""
    settings, corpus = experiment.train, experiment.data.load()
    there = corpus.tokens("validation") or module.VALIDATED
    count = min(there, module.VALIDATED) // (settings.batch * settings.length)
    stream = iter(corpus.batches(settings.length, settings.batch, 0, split="validation"))
    nll, tokens = 0.0, 0
    for _ in range(count):
        batch = {name: np.asarray(array) for name, array in next(stream).items()}
        logits = jax.jit(experiment.model)(params, Batch(**batch)).x
        scores = np.asarray(jax.nn.log_softmax(logits), np.float64)
        picked = np.take_along_axis(scores, batch["targets"][..., None], axis=-1)[..., 0]
        counted = (batch["segments"] > 0) & (batch["targets"] >= 0)
        nll, tokens = nll - picked[counted].sum(), tokens + counted.sum()
    return nll / tokens


def test_the_loss_stands_in_the_rows_of_its_steps(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "VALIDATED", 1000)
    run = trained(experiment, tmp_path / "text")
    rows = run.read_metrics()
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 3]
    there = rows[-1]["validation_loss"]
    # measured: 1e-7
    assert there == pytest.approx(expected_loss(experiment, restore_params(experiment, run)), 1e-5)


def test_symbols_are_validated_on_rows_of_their_own(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "VALIDATED", 1000)
    data = MQAR(pairs=(4, 8), vocab=64)
    model, protocol = replace(experiment.model, vocab=65), Recall(contexts=(32, 64))
    recall = replace(experiment, data=data, model=model, evaluation=protocol)
    validate("recall", recall, {}, data.load())
    run = trained(recall, tmp_path / "recall")
    there = run.read_metrics()[-1]["validation_loss"]
    assert there == pytest.approx(expected_loss(recall, restore_params(recall, run)), 1e-5)
    splits = ("train", "validation", "test")
    first = [next(iter(data.load().batches(48, 4, 0, split=s)))["tokens"] for s in splits]
    assert not any(np.array_equal(a, b) for a, b in pairwise(first))


def test_rows_are_the_same_whatever_the_seed_and_lie_where_training_draws_them(experiment):
    mesh = jax.make_mesh((1, 1, 1, 1, 1), ("data", "fsdp", "seq", "model", "expert"))
    corpus = experiment.data.load()

    def rows(**settings):
        asked = replace(experiment, train=replace(experiment.train, **settings))
        return jax.tree.map(np.asarray, Validation(asked, corpus, mesh)._rows)

    plain = rows()
    jax.tree.map(np.testing.assert_array_equal, rows(seed=1), plain)
    drawn = rows(positions=PoSE(longest=300))
    np.testing.assert_array_equal(drawn.tokens, plain.tokens)
    assert drawn.positions.max() < 300 < plain.positions.max()


def test_what_cannot_be_validated_is_refused(experiment):
    with pytest.raises(ValueError, match="evaluate_every must be at least 1 or None, not 0"):
        Train(evaluate_every=0)
    none = replace(experiment, data=replace(experiment.data, validation=0.0))
    with pytest.raises(ValueError, match=r"train.evaluate_every: none of the 40 documents"):
        validate("v", none, {}, none.data.load())
    quiet = replace(none, train=replace(none.train, evaluate_every=None))
    validate("v", quiet, {}, none.data.load())
    wide = replace(experiment, train=replace(experiment.train, batch=1000))
    with pytest.raises(ValueError, match=r"train.evaluate_every: .* fewer than the 1000 rows"):
        validate("v", wide, {}, wide.data.load())
