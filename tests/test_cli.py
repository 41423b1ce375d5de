"""The command as a user meets it: one whole comparison, and every early error."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from lcx.command import cli
from lcx.report import pictures
from lcx.training.runs import Run

TINY = str(Path(__file__).parent / "tiny.py")


@pytest.fixture(autouse=True)
def source(texts, monkeypatch):
    monkeypatch.setenv("TINY_TEXTS", f"{texts}/*.txt")
    monkeypatch.setenv("COLUMNS", "200")


def lcx(*arguments: str, drawn: bool = False) -> int:
    """Exit code of `lcx ...`, run here. drawn: with the pictures of pages, which take longest."""
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(pictures, "render", lambda *_: b"<svg/>")
        patch.setattr(sys, "argv", ["lcx", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def compared(texts, tmp_path_factory) -> Path:
    """`lcx compare` of three variants that share one training."""
    out = tmp_path_factory.mktemp("out") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_TEXTS", f"{texts}/*.txt")
        only = ("--only", "softmax,stretched,zero_shot")
        assert lcx("compare", TINY, "--out", out, *only, drawn=True) == 0
    return out


def test_compare_writes_the_report_in_its_format(compared):
    report = json.loads((compared / "report" / "SameTargets" / "report.json").read_text())
    assert report["protocol"]["type"] == "SameTargets"
    assert list(report["variants"]) == ["softmax", "stretched", "zero_shot"]
    for variant in report["variants"].values():
        assert {"cost", "train_len", "train_tokens", "train_seconds", "contexts"} <= set(variant)
        assert [point["context"] for point in variant["contexts"]] == [16, 64, 200]
        for point in variant["contexts"]:
            low, high = point["ci95"]
            assert low <= point["ppl"] <= high
            assert point["tokens"] % 8 == 0
    softmax, stretched, zero_shot = report["variants"].values()
    assert stretched["train_tokens"] > softmax["train_tokens"] == zero_shot["train_tokens"]
    assert (stretched["train_len"], zero_shot["train_len"]) == (192, 48)
    trained = [[p["trained"] for p in v["contexts"]] for v in (softmax, stretched, zero_shot)]
    assert trained == [[True, False, False], [True, True, False], [True, False, False]]
    assert [p["reach"] for p in softmax["contexts"]] == [16, 64, 200]
    folder = compared / "report" / "SameTargets"
    assert "zero_shot" in (folder / "report.html").read_text()
    assert (folder / "perplexity_vs_context.png").stat().st_size > 10_000


def test_a_stage_starts_from_its_parent(compared):
    first = json.loads((compared / "stretched" / "metrics.jsonl").read_text().splitlines()[0])
    last = json.loads((compared / "softmax" / "metrics.jsonl").read_text().splitlines()[-1])
    assert first["loss"] < last["loss"] + 0.3  # and not ln 257 = 5.55
    assert first["loss"] < 5.4


def test_finished_variants_are_reused_and_say_so(compared, capsys):
    before = {p: p.read_bytes() for p in compared.rglob("*.json") if "report" not in p.parts}
    assert lcx("compare", TINY, "--out", compared, "--only", "softmax,zero_shot") == 0
    said = capsys.readouterr().out
    assert "softmax: trained already" in said
    assert "zero_shot: evaluated already" in said
    assert before == {p: p.read_bytes() for p in before}


def test_more_seeds_reuse_the_first_and_change_nothing_else(compared, capsys):
    only = ("--only", "softmax,zero_shot", "--seeds", "2")
    assert lcx("compare", TINY, "--out", compared, *only) == 0
    said = capsys.readouterr().out
    for name in ("softmax", "zero_shot"):
        assert f"{name}: trained already" in said
        assert f"{name}: evaluated already" in said
        assert f"{name}.1: trained already" not in said
    saved = [json.loads((compared / run / "experiment.json").read_text()) for run in RUNS]
    assert [one["train"].pop("seed") for one in saved] == [0, 1]
    assert [one.pop("seeds") for one in saved] == [1, 2]
    assert saved[0] == saved[1]
    losses = [rows[-1]["loss"] for rows in map(metrics, (compared / run for run in RUNS))]
    assert losses[0] != losses[1]
    report = json.loads((compared / "report" / "SameTargets" / "report.json").read_text())
    seeds = {name: variant["seeds"] for name, variant in report["variants"].items()}
    assert seeds == {"softmax": 2, "stretched": 1, "zero_shot": 2}  # what is there stays there
    for name in ("softmax", "zero_shot"):
        runs = report["variants"][name]["runs"]
        assert len({run["contexts"][0]["ppl"] for run in runs}) == 2
    single = json.loads(next((compared / "softmax.1" / "eval").glob("*.json")).read_text())
    assert (single["variant"], single["seed"]) == ("softmax", 1)
    # the same weights under another scheme: seed by seed
    assert all(x["training_chance"] for x in report["differences"]["variants"]["zero_shot"])


RUNS = ("softmax", "softmax.1")


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_another_protocol_evaluates_again_without_training(compared, capsys):
    change = "evaluation=Sliding(contexts=(16, 64), stride=16, documents=2)"
    only = ("--only", "softmax", "--set", change)
    assert lcx("evaluate", TINY, "--out", compared, *only) == 0
    assert len(list((compared / "softmax" / "eval").glob("Sliding-*.json"))) == 1
    assert len(list((compared / "softmax" / "eval").glob("SameTargets-*.json"))) == 1


def test_a_folder_of_another_experiment_is_refused_untouched(compared, capsys):
    before = {p: p.stat().st_mtime_ns for p in compared.rglob("*")}
    assert lcx("train", TINY, "--out", compared, "--set", "train.batch=2") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds another experiment; nothing was overwritten" in said
    assert "train.batch" in said
    assert before == {p: p.stat().st_mtime_ns for p in compared.rglob("*")}


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "softmax").mkdir()
    (tmp_path / "softmax" / "thesis.tex").write_text("mine")
    assert lcx("train", TINY, "--out", tmp_path, "--only", "softmax") == 2
    assert "is not a run of lcx" in " ".join(capsys.readouterr().err.split())


OWN_MIXER = """
'''Does a mixer of one's own work?'''

from dataclasses import dataclass, replace
from tests import tiny

@dataclass(frozen=True)
class Half(tiny.SwiGLU):
    share: float = 0.5
    def __call__(self, params, x, ctx, state=None):
        out = super().__call__(params, x, ctx, state)
        return out._replace(x=self.share * out.x)

def experiments():
    whole = tiny.experiments()["softmax"]
    settings = replace(whole.train, steps=1)
    return {"own": replace(whole, model=tiny.model(Half(hidden=16)), train=settings)}
"""


def test_a_mixer_of_the_experiment_file_is_saved_and_reused(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN_MIXER)
    command = ("train", tmp_path / "own.py", "--out", tmp_path / "out")
    change = ("--set", "model.pattern.0.mixer=Half(hidden=24, share=0.25)")
    assert lcx(*command, *change) == 0
    assert lcx(*command, *change) == 0
    assert "own: trained already" in capsys.readouterr().out
    assert lcx(*command) == 2
    assert "share" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_another_process_writes_is_left_alone(compared, capsys):
    with Run(compared / "softmax").lock():
        assert lcx("train", TINY, "--out", compared, "--only", "softmax") == 1
    assert "another process is at work" in " ".join(capsys.readouterr().err.split())


def test_evaluating_what_is_not_trained_says_so(tmp_path, capsys):
    assert lcx("evaluate", TINY, "--out", tmp_path, "--only", "softmax") == 2
    assert "is not trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "sofmax"], "no variant 'sofmax'; did you mean 'softmax'?"),
        (["--set", "model.pattern.0.mixer.head=4"], "did you mean 'heads'?"),
        (["--set", "model.pattern.0.mixer.heads=3"], "3 heads do not divide the model width 16"),
        (["--set", "model.pattern.0.mixer=LinearAtention()"], "LinearAttention"),
        (["--set", "model.pattern.7.mixer=RetNet()"], "7"),
        (["--set", "train.steps=many"], "train.steps: expected int"),
        (["--set", "train.steps"], "="),
        (["--set", "train.batch=0"], "batch must be at least 1"),
        (["--set", "train.accumulate=3"], "cannot be cut into 3 parts"),
        (["--set", "evaluation.contexts=(64, 100000)"], "no document of split 'test' has 100000"),
        (["--set", "data.source=TextFiles('nowhere/*.txt')"], "nowhere/*.txt"),
        (["--set", "model.vocab=256"], "model.vocab: is 256, the tokenizer has 257 tokens"),
        (
            ["--set", "mesh.data=3"],
            "does not divide train.batch's rows at a time, 4; nearest that do: 2 or 4",
        ),
        (["--set", "mesh.model=64"], "takes 64 of 8 devices"),
        (["--set", "init_from='nobody'"], "no variant 'nobody'"),
        (["--set", "init_from='softmax'"], "circle"),
        (["--only", "softmax", "--set", "train.steps=0"], "there is no init_from"),
        (["--seeds", "0"], "--seeds must be at least 1, not 0"),
        (["--set", "seeds=0"], "seeds must be at least 1, not 0"),
        (
            ["--only", "zero_shot", "--set", "seeds=3"],
            "seeds: is 3, and softmax, which it starts from, has 1; run i starts from run i, so "
            "give both the same: --seeds 3",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_training(arguments, message, tmp_path, capsys):
    only = [] if "--only" in arguments else ["--only", "softmax"]
    assert lcx("compare", TINY, "--out", tmp_path / "out", *only, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_missing_file_names_the_nearest(capsys):
    assert lcx("train", TINY.replace("tiny", "tinny")) == 2
    assert "did you mean" in capsys.readouterr().err


def test_list_names_everything(capsys, tmp_path):
    shutil.copy(TINY, tmp_path / "tiny.py")
    assert lcx("list", tmp_path) == 0
    said = capsys.readouterr().out
    for name in (
        "SoftmaxAttention",
        "RWKV4",
        "RoPE",
        "PositionInterpolation",
        "PythonCorpus",
        "SameTargets",
    ):
        assert name in said
    assert "The smallest experiment that is whole" in said


OWN_FILE = '''"""Which line is it?"""

from lcx.experiment import Experiment
from lcx.positions import RoPE


def helper():
    return {helper}


def experiments():
    return {{"a": Experiment(init_from=helper())}}
'''


@pytest.mark.parametrize(
    ("helper", "code", "lines"),
    [
        ("RoPE(theta=-1.0)", 2, ["error: RoPE: theta must be", "mine.py, line 8)"]),
        ("1 + unknown", 1, ['mine.py", line 12', 'mine.py", line 8', "NameError: name 'unknown'"]),
        ("1 +", 1, ['mine.py", line 8', "SyntaxError"]),
    ],
)
def test_errors_in_the_users_file_show_the_users_lines_alone(
    helper, code, lines, tmp_path, capsys, monkeypatch
):
    mine = tmp_path / "mine.py"
    mine.write_text(OWN_FILE.format(helper=helper))
    assert lcx("train", mine, "--out", tmp_path / "out") == code
    shown = capsys.readouterr().err
    assert all(line in shown for line in lines), shown
    assert not any(other in shown for other in ("lcx/", "importlib"))
    monkeypatch.setenv("LCX_TRACEBACK", "1")
    with pytest.raises((ValueError, NameError, SyntaxError)):
        lcx("train", mine, "--out", tmp_path / "out")


def test_errors_of_lcx_itself_show_everything(monkeypatch):
    def broken() -> None:
        """Fail as a defect would."""
        raise KeyError("a defect")

    broken.__code__ = broken.__code__.replace(co_filename=cli.__file__)
    monkeypatch.setitem(cli.COMMANDS, "broken", broken)
    with pytest.raises(KeyError, match="a defect"):
        lcx("broken")
