"""What the docstring of experiments/quickstart.py expects, on a run of it: pytest -m quickstart."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.quickstart
FILE = Path("runs/quickstart/report/report.json")


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
    within, beyond = gain(report, "softmax", 256), perplexity(report, "softmax")
    assert within["value"] < 0.92
    assert within["ci95"][1] < 1
    assert beyond[1024] > 1.2 * beyond[256]
    assert beyond[2048] > beyond[32]


def test_a_window_over_the_same_weights_keeps_what_was_gained(report):
    window = perplexity(report, "window")
    assert max(window[c] for c in (512, 1024, 2048)) < 1.03 * window[256]
    assert against_softmax(report, "window", 1024)["ci95"][1] < 1


def test_yarn_keeps_it_to_four_times_the_length(report):
    assert against_softmax(report, "yarn", 1024)["ci95"][1] < 1
    assert perplexity(report, "yarn")[1024] < 1.1 * perplexity(report, "softmax")[256]


def test_a_fine_tune_at_four_times_the_length_improves_on_yarn(report):
    assert perplexity(report, "fine_tuned")[1024] < perplexity(report, "yarn")[1024]
    assert against_softmax(report, "fine_tuned", 1024)["ci95"][1] < 1
