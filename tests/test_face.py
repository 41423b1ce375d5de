"""The names of `import lcx`, and a trained run opened from Python."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import lcx
from lcx.experiment import TABLES
from lcx.training.loop import train
from lcx.training.origin import Origin
from lcx.training.runs import Run
from tests.tiny import tiny


def test_every_entry_of_a_table_is_there_by_name():
    entries = {cls for table in TABLES.values() for cls in table.values()}
    assert {getattr(lcx, cls.__name__) for cls in entries} == entries
    assert {"LM", "Block", "Experiment", "Train", "Mesh", "Policy", "Batch"} < set(dir(lcx))
    with pytest.raises(AttributeError, match="no attribute 'Rope'"):
        lcx.Rope  # noqa: B018


def test_editors_find_the_names():
    folder = Path(lcx.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "__init__.pyi").exists()


def test_the_package_alone_imports_no_jax():
    code = "import sys, lcx; assert 'jax' not in sys.modules; lcx.LM; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    experiment = tiny(f"{texts}/*.txt")
    run = Run(tmp_path_factory.mktemp("runs") / "it")
    run.claim(experiment, Origin(), {})
    train(experiment, run, experiment.data.load(), None, Console(quiet=True))
    return run.folder


def test_a_run_is_opened_and_asked(folder):
    run = lcx.open_run(folder)
    ids = run.tokenizer.encode(b"some text")
    logits = run.model(run.params, lcx.Batch(ids[None])).x
    assert logits.shape == (1, 9, run.model.vocabulary)
    assert np.isfinite(logits).all()
    assert run.tokenizer.decode(ids) == b"some text"
    assert [row["step"] for row in run.metrics] == list(range(1, 13))
    assert run.evaluations == []


def test_what_is_no_run_says_where_one_is(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no experiment\.json; it holds the runs it"):
        lcx.open_run(folder.parent)
    (tmp_path / "experiment.json").write_text('{"type": "Mine"}')
    with pytest.raises(ValueError, match=r"experiment\.json cannot be read: unknown type 'Mine'"):
        lcx.open_run(tmp_path)
