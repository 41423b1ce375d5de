"""Nothing lost, nothing stale: what a run belongs to, and what becomes of it when that changes."""

import json
import shutil
import sys

import pytest

from lcx.experiment_file import run_file
from lcx.training.runs import Run
from tests.test_cli import lcx

OWN = '''
"""Does my mixer help?"""

from dataclasses import dataclass, replace

from helper import share
from tests import tiny


@dataclass(frozen=True)
class Half(tiny.SwiGLU):
    def __call__(self, params, x, ctx, state=None):
        out = super().__call__(params, x, ctx, state)
        return out._replace(x=share() * out.x)


def experiments():
    whole = replace(tiny.tiny({glob!r}), train=replace(tiny.tiny("").train, steps=1))
    return {{
        "softmax": whole,
        "own": replace(whole, model=tiny.model(Half(hidden=16))),
        "child": replace(
            whole, model=tiny.model(Half(hidden=16)), init_from="own",
            train=replace(whole.train, steps=0),
        ),
    }}
'''
HELPER = "def share():\n    return 0.5\n\n\ndef other():\n    return 1\n"


@pytest.fixture(scope="module")
def made(texts, tmp_path_factory):
    """An experiment file of a user's own, its texts and its finished runs."""
    folder = tmp_path_factory.mktemp("mine")
    shutil.copytree(texts, folder / "texts")
    (folder / "mine.py").write_text(OWN.format(glob=f"{folder}/texts/*.txt"))
    (folder / "helper.py").write_text(HELPER)
    assert lcx("compare", folder / "mine.py", "--out", folder / "out") == 0
    return folder


@pytest.fixture
def mine(made, tmp_path):
    """A copy of it, to be changed; the texts lie where they lay."""
    folder = tmp_path / "mine"
    shutil.copytree(made, folder)
    return folder


def said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_layout_comments_and_unused_code_change_nothing(mine, capsys):
    helper = mine / "helper.py"
    helper.write_text("# the share\n" + HELPER.replace("return 1", "return 2"))
    assert lcx("compare", mine / "mine.py", "--out", mine / "out") == 0
    assert said(capsys).count("evaluated already") == 3


def test_code_that_changed_is_named_and_reused_only_when_asked(mine, capsys):
    (mine / "helper.py").write_text(HELPER.replace("0.5", "0.25"))
    assert lcx("compare", mine / "mine.py", "--out", mine / "out") == 2
    text = said(capsys)
    assert "out/own was made of something else" in text
    assert "the code of Half has changed" in text
    assert lcx("evaluate", mine / "mine.py", "--out", mine / "out", "--reuse") == 0
    report = json.loads((mine / "out" / "report" / "SameTargets" / "report.json").read_text())
    assert "the code of Half" in report["variants"]["own"]["changed"][0]
    assert report["variants"]["softmax"]["changed"] == []


def test_texts_that_changed_are_named(mine, made, capsys):
    extra = made / "texts" / "extra.txt"
    extra.write_text("one more document " * 100)
    try:
        assert lcx("compare", mine / "mine.py", "--out", mine / "out") == 2
    finally:
        extra.unlink()
    assert "the texts, their splits or their tokens have changed" in said(capsys)


def test_texts_that_lie_elsewhere_are_the_same(mine, capsys):
    shutil.copytree(mine / "texts", mine / "moved")
    source = f"data.source=TextFiles('{mine}/moved/*.txt')"
    assert lcx("compare", mine / "mine.py", "--out", mine / "out", "--set", source) == 0
    assert said(capsys).count("evaluated already") == 3


def test_a_child_knows_what_it_began_from(mine, capsys):
    shutil.rmtree(mine / "out" / "own")
    change = ("--only", "own", "--set", "train.seed=7")
    assert lcx("train", mine / "mine.py", "--out", mine / "out", *change) == 0
    assert lcx("evaluate", mine / "out", "--only", "child") == 2
    assert "what it began from has been trained anew" in said(capsys)


@pytest.mark.slow
def test_a_folder_of_runs_needs_neither_file_nor_flags(mine, capsys, monkeypatch):
    for name in ("mine.py", "helper.py"):
        (mine / name).unlink()
    monkeypatch.chdir(mine)
    change = "evaluation=SameTargets(contexts=(16, 64), span=32)"
    assert lcx("evaluate", mine / "out", "--only", "own", "--set", change) == 0
    pages = mine / "out" / "report"
    assert sorted(path.name for path in pages.iterdir()) == ["SameTargets", "SameTargets-2"]
    assert json.loads((pages / "SameTargets-2" / "report.json").read_text())["variants"].keys() == {
        "own"
    }
    assert "Does my mixer help?" in (pages / "SameTargets-2" / "report.html").read_text()
    capsys.readouterr()
    assert lcx("report", mine / "out", "--baseline", "own") == 0
    report = json.loads((pages / "SameTargets" / "report.json").read_text())
    assert [*report["variants"]] == ["own", "softmax", "child"]
    assert report["differences"]["against"] == "own"
    assert lcx("report", mine / "out", "--baseline", "owm") == 2
    assert "did you mean 'own'?" in said(capsys)


def test_a_run_keeps_what_it_was_made_of(made):
    run = made / "out" / "own"
    assert (run / "source" / "mine.py").read_text() == (made / "mine.py").read_text()
    assert (run / "source" / "helper.py").read_text() == HELPER
    origin = json.loads((run / "origin.json").read_text())
    assert origin["code"].keys() == {"Half"}
    child = json.loads((made / "out" / "child" / "origin.json").read_text())
    assert child["began_from"] == child["weights"] == origin["weights"]


def test_a_variant_that_fails_is_a_row_and_the_others_go_on(mine, capsys):
    out = mine / "out2"
    change = ("--set", "train.optimizer.peak=1e30", "--set", "train.steps=4")
    assert lcx("train", mine / "mine.py", "--out", out, "--only", "own", *change) == 1
    assert "own failed" in said(capsys)
    shutil.copytree(mine / "out" / "softmax", out / "softmax")
    (mine / "mine.py").write_text(
        (mine / "mine.py").read_text().replace(
            '"own": replace(whole,',
            '"own": replace(whole, '
            "train=replace(whole.train, steps=4, optimizer=tiny.AdamW(peak=1e30, warmup=1)),",
        )
    )  # fmt: skip
    assert lcx("compare", mine / "mine.py", "--out", out) == 1
    text = said(capsys)
    assert "own failed" in text
    assert "child failed" in text
    report = json.loads((out / "report" / "SameTargets" / "report.json").read_text())
    assert [*report["variants"]] == ["softmax"]
    assert report["failures"].keys() == {"own", "child"}
    assert "is nan at step" in report["failures"]["own"]
    page = (out / "report" / "SameTargets" / "report.html").read_text()
    assert "is nan at step" in page


def test_what_cannot_stand_on_one_page_is_refused_before_training(made, tmp_path, capsys):
    mixed = (made / "mine.py").read_text().replace(
        '"softmax": whole',
        '"softmax": replace(whole, evaluation=tiny.SameTargets(contexts=(16, 64), span=32))',
    )  # fmt: skip
    (tmp_path / "mixed.py").write_text(mixed)
    (tmp_path / "helper.py").write_text(HELPER)
    assert lcx("compare", tmp_path / "mixed.py", "--out", tmp_path / "out") == 2
    assert "cannot be compared: protocol.contexts" in said(capsys)
    assert not (tmp_path / "out").exists()
    # trained, they have no page
    steps = ("--set", "train.steps=1", "--only", "softmax,own")
    assert lcx("train", tmp_path / "mixed.py", "--out", tmp_path / "out", *steps) == 0


@pytest.mark.slow
def test_a_result_that_is_cut_short_is_made_again(mine, capsys):
    path = next((mine / "out" / "softmax" / "eval").glob("*.json"))
    path.write_text(path.read_text()[:200])
    assert lcx("evaluate", mine / "mine.py", "--out", mine / "out", "--only", "softmax") == 0
    assert f"{path.name} cannot be read; evaluated again" in said(capsys)
    assert json.loads(path.read_text())["variant"] == "softmax"


def test_places_that_cannot_be_written_are_refused(made, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert lcx("train", made / "mine.py", "--out", tmp_path / "file" / "out") == 2
    assert "is a file, not a folder" in said(capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_runs_is_no_experiment(tmp_path, capsys):
    assert lcx("evaluate", tmp_path) == 2
    assert "holds no run of lcx" in said(capsys)


def test_sys_modules_hold_the_file_that_was_loaded_last(made, tmp_path):
    for share in ("0.1", "0.2"):
        folder = tmp_path / share
        folder.mkdir()
        (folder / "helper.py").write_text(f"VALUE = {share}\n")
        (folder / "mine.py").write_text("from helper import VALUE\n")
        assert float(share) == run_file(folder / "mine.py").VALUE
    assert sys.modules["helper"].VALUE == 0.2


@pytest.mark.slow
def test_a_finished_run_goes_further_where_that_is_exact(made, tmp_path, capsys):
    file = made / "mine.py"
    change = ("--only", "softmax", "--set", "train.optimizer.schedule=wsd", "--set")
    for out, steps in (("part", 20), ("part", 40), ("whole", 40)):
        assert lcx("train", file, "--out", tmp_path / out, *change, f"train.steps={steps}") == 0
    text = said(capsys)
    assert "softmax: goes on to 40 steps from step 18" in text
    runs = [tmp_path / out / "softmax" for out in ("part", "whole")]
    rows = [[row["loss"] for row in Run(run).read_metrics()] for run in runs]
    assert rows[0] == rows[1]
    weights = [json.loads((run / "origin.json").read_text())["weights"] for run in runs]
    assert weights[0] == weights[1]
    earlier = runs[0] / "earlier" / "20"
    assert len((earlier / "metrics.jsonl").read_text().splitlines()) == 20
    assert (earlier / "20").is_dir()


def test_a_run_that_cannot_go_further_says_why(made, capsys):
    change = ("--only", "softmax", "--set", "train.steps=30")
    assert lcx("train", made / "mine.py", "--out", made / "out", *change) == 2
    text = said(capsys)
    assert "was trained for 1 steps and cannot go on to 30" in text
    assert "init_from='softmax'" in text


@pytest.mark.slow
def test_the_page_shows_the_result_that_was_asked_last(mine, capsys):
    """Not one of changed code, which --reuse took in between."""
    helper, whole = mine / "helper.py", ("compare", mine / "mine.py", "--out", mine / "out")
    page = mine / "out" / "report" / "SameTargets" / "report.html"
    helper.write_text(HELPER.replace("0.5", "0.7"))
    assert lcx(*whole, "--reuse") == 0
    assert "has changed since" in page.read_text()
    helper.write_text(HELPER)
    assert lcx(*whole) == 0
    assert "has changed since" not in page.read_text()
