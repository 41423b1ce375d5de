"""What the docstring of experiments/quickstart.py expects, on a run of it: pytest -m quickstart."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.quickstart
FILE = Path("runs/quickstart/report/SameTargets/report.json")


@pytest.fixture(scope="module")
def report():
    if not FILE.exists():
        pytest.skip(f"no {FILE}; first: lcx compare experiments/quickstart.py")
    return json.loads(FILE.read_text())


def perplexity(report, name: str) -> dict[int, float]:
    return {p["context"]: p["ppl"] for p in report["variants"][name]["contexts"]}


def gain(report, name: str, context: int) -> dict:
    """Perplexity at this context over that at the shortest, the same targets paired."""
    return next(x for x in report["variants"][name]["gains"] if x["context"] == context)


def against_softmax(report, name: str, context: int) -> dict:
    found = report["differences"]["variants"][name]
    return next(x for x in found if x["context"] == context)


def test_enough_is_scored(report):
    assert all(
        p["tokens"] >= 2000 and p["documents"] >= 16
        for v in report["variants"].values()
        for p in v["contexts"]
    )


def test_rope_gains_within_its_training_and_loses_beyond(report):
    within, ppl = gain(report, "softmax", 128), perplexity(report, "softmax")
    assert within["value"] < 0.92
    assert within["ci95"][1] < 1
    assert ppl[512] > 1.2 * ppl[128]
    assert gain(report, "softmax", 512)["ci95"][1] > 1  # no gain left that one could claim
    assert gain(report, "softmax", 1024)["ci95"][0] > 1


def test_a_window_over_the_same_weights_keeps_what_was_gained(report):
    window = perplexity(report, "window")
    assert max(window[c] for c in (256, 512, 1024)) < 1.03 * window[128]
    assert against_softmax(report, "window", 512)["ci95"][1] < 1


def test_yarn_keeps_most_of_it_to_four_times_the_length(report):
    assert against_softmax(report, "yarn", 512)["ci95"][1] < 1
    assert gain(report, "yarn", 512)["ci95"][1] < 1
    assert perplexity(report, "yarn")[512] < 1.1 * perplexity(report, "softmax")[128]


def test_a_fine_tune_at_four_times_the_length_is_best_there(report):
    at_512 = {name: perplexity(report, name)[512] for name in report["variants"]}
    assert min(at_512, key=at_512.__getitem__) == "fine_tuned"
    assert against_softmax(report, "fine_tuned", 512)["ci95"][1] < 1
    assert perplexity(report, "fine_tuned")[512] < perplexity(report, "fine_tuned")[128]


def test_linear_attention_worsens_and_rwkv_holds(report):
    linear, rwkv = perplexity(report, "linear"), perplexity(report, "rwkv4")
    assert linear[512] > linear[64]
    assert rwkv[1024] < 1.03 * rwkv[128]
