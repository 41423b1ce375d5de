"""What follows from which variant starts from which: lengths, trainings, numbers of runs."""

from dataclasses import replace

import pytest

from lcx.cost import cost_of
from lcx.experiment import Experiment, Train
from lcx.huggingface import Pretrained
from lcx.positions import PoSE
from lcx.variants import (
    check_seeds,
    cost_length,
    count_runs,
    published,
    setup_of,
    trained_length,
    trainings,
    with_ancestors,
)

ROOT = Experiment(train=Train(length=512, steps=100))
ZERO_SHOT = replace(ROOT, train=Train(length=4096, steps=0), init_from="root")
CHAIN = {
    "root": ROOT,
    "zero_shot": ZERO_SHOT,
    "tuned": replace(ROOT, train=Train(length=2048, steps=10), init_from="zero_shot"),
    "short_again": replace(ROOT, train=Train(length=64, steps=10), init_from="tuned"),
    "spread": replace(ROOT, train=Train(length=256, positions=PoSE(4096)), init_from="root"),
}


@pytest.fixture
def llama(tmp_path, monkeypatch):
    monkeypatch.setattr(Pretrained, "trained_length", 2048)
    return Pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "length", "stages"),
    [
        ("root", 512, ["root"]),
        ("zero_shot", 512, ["root"]),  # no step was made at 4,096
        ("tuned", 2048, ["root", "tuned"]),
        ("short_again", 2048, ["root", "tuned", "short_again"]),
        ("spread", 512, ["root", "spread"]),  # positions up to 4,096, rows of 256
    ],
)
def test_weights_were_trained_at_the_longest_of_their_trainings(name, length, stages):
    assert trained_length(name, CHAIN) == length
    assert trainings(name, CHAIN) == stages


def test_a_published_model_was_trained_at_its_own_length(llama):
    given = {
        "given": replace(ROOT, train=Train(steps=0), init_from=llama),
        "tuned": replace(ROOT, init_from="given", seeds=3),
        "longer": replace(ROOT, train=Train(length=8192), init_from=llama),
    }
    assert [trained_length(name, given) for name in given] == [2048, 2048, 8192]
    assert [published(name, given) for name in given] == [llama] * 3
    assert trainings("given", given) == []
    assert [count_runs(name, given) for name in given] == [1, 3, 1]
    check_seeds(given, given)  # several fine-tunes of one published model
    assert [cost_length(name, given) for name in given] == [2048, 512, 8192]


def test_what_trains_no_step_has_nothing_of_a_training(llama, monkeypatch):
    given = {
        "given": replace(ROOT, train=Train(steps=0), init_from=llama),
        "tuned": replace(ROOT, init_from="given"),
    }
    setup = setup_of(given["given"])
    assert setup["steps"] == 0
    only = ("length", "batch", "positions", "optimizer", "learning_rate", "loss")
    assert {setup[key] for key in only} == {None}
    assert None not in [setup_of(given["tuned"])[key] for key in only if key != "positions"]
    # a config that says no length
    monkeypatch.setattr(Pretrained, "trained_length", None)
    assert [trained_length(name, given) for name in given] == [None, 512]
    assert [cost_length(name, given) for name in given] == [None, 512]
    cost = cost_of(ROOT.model, None, [64])
    assert cost == cost_of(ROOT.model, 512, [64]) | {"training_flops": None}


def test_runs_of_a_chain_are_as_many():
    chain = CHAIN | {"tuned": replace(CHAIN["tuned"], seeds=3)}
    with pytest.raises(ValueError, match=r"tuned: seeds: is 3, and zero_shot.* has 1.*--seeds 3"):
        check_seeds(with_ancestors(["tuned"], chain), chain)
    check_seeds(["root", "spread"], chain)  # the others are not asked for
    check_seeds(chain, {name: replace(e, seeds=3) for name, e in CHAIN.items()})


def test_a_run_differs_in_its_seed_alone():
    experiment = replace(ROOT, train=replace(ROOT.train, seed=5), seeds=3)
    assert experiment.run(0) == experiment
    assert experiment.run(2).training_differences(experiment) == ["train.seed: 7 here, 5 there"]
    assert replace(experiment, seeds=1).training_differences(experiment) == []
    with pytest.raises(ValueError, match="seeds must be at least 1, not 0"):
        Experiment(seeds=0)


def test_setups_are_plain_values(llama):
    setup = setup_of(CHAIN["spread"])
    assert (setup["init_from"], setup["length"], setup["learning_rate"]) == ("root", 256, 2e-3)
    assert (setup["positions"], setup["heads"]) == ("PoSE(longest=4096)", [4])
    assert setup_of(replace(ROOT, init_from=llama))["init_from"].startswith("Pretrained(")
    assert setup_of(ROOT)["init_from"] is None
