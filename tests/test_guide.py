"""The code of docs/guide.md runs, block after block, on a run in the place that it names."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from rich.console import Console

from lcx.evaluation.evaluate import evaluate
from lcx.spec import encode
from lcx.training.loop import train
from lcx.training.origin import Origin
from lcx.training.restore import restore_params
from lcx.training.runs import Run, write_json
from tests.tiny import tiny

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


@pytest.fixture
def here(texts, tmp_path, monkeypatch):
    experiment = tiny(f"{texts}/*.txt")
    run = Run(tmp_path / "runs" / "quickstart" / "softmax")
    run.claim(experiment, Origin(), {})
    corpus = experiment.data.load()
    train(experiment, run, corpus, None, Console(quiet=True))
    measured, _ = evaluate(
        experiment, restore_params(experiment, run), corpus, "it", Console(quiet=True)
    )
    said = {
        "protocol": encode(experiment.evaluation),
        "data": corpus.describe(),
        "contexts": measured.contexts,
    }
    write_json(run.evaluation(experiment, corpus.fingerprint), said)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    plt.close("all")


def test_the_guide_runs(here, capsys):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) > 4
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number} of {GUIDE.name}", "exec"), names)
    pictures = re.findall(r"\((guide-\w+\.svg)\)", GUIDE.read_text("utf-8"))
    assert all((GUIDE.parent / name).exists() for name in pictures)
    assert {(here / name.removeprefix("guide-")).exists() for name in pictures} == {True}
    printed = capsys.readouterr().out
    assert "200 tokens: perplexity" in printed
    rounding = float(re.search(r"^([\d.e-]+)$", printed, re.MULTILINE)[1])
    assert rounding < 1e-4
