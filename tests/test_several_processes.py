"""One experiment on several processes, and on one after the other: the same numbers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lcx.experiment_file import load
from lcx.parallel.preemption import PREEMPTED
from lcx.training.restore import restore_params
from lcx.training.runs import Run

HERE = Path(__file__).parent
LCX = [sys.executable, "-c", "from lcx.command.cli import main; main()"]
STEPS = 40


def launched(texts, processes: int, devices: int, *command: str) -> subprocess.Popen:
    """`processes` processes of `devices` devices each, by the launcher; one starts without it."""
    local = [sys.executable, str(HERE.parent / "launch" / "local.py")]
    local += ["--processes", str(processes), "--devices-per-process", str(devices), "--"]
    environment = os.environ | {
        "TINY_TEXTS": f"{texts}/*.txt",
        "PYTHONPATH": str(HERE.parent),
        "XLA_FLAGS": re.sub(r"--xla_force\S+", "", os.environ["XLA_FLAGS"]),
    }
    line = [*LCX, command[0], str(HERE / "tiny.py"), "--only", "softmax", *command[1:]]
    line += ["--set", f"train.steps={STEPS}", "--set", "train.checkpoint_every=15"]
    return subprocess.Popen(
        line if processes == 1 else local + line,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def mesh(**sizes: int) -> list[str]:
    return [word for name, size in sizes.items() for word in ("--set", f"mesh.{name}={size}")]


@pytest.mark.slow
def test_processes_that_are_preempted_and_go_on_elsewhere_end_with_the_same_numbers(
    texts, tmp_path, monkeypatch
):
    alone, moved = (Run(tmp_path / name / "softmax") for name in ("alone", "moved"))
    one = launched(texts, 1, 1, "compare", "--out", str(alone.folder.parent))

    # two processes, asked to end in the midst
    out = ["--out", str(moved.folder.parent)]
    two = launched(texts, 2, 2, "compare", *out, *mesh(data=2, seq=2))
    while len(moved.read_metrics()) < 2:
        assert two.poll() is None, two.communicate()[0]
        time.sleep(0.005)
    two.send_signal(signal.SIGTERM)
    said = two.communicate(timeout=120)[0]
    assert two.returncode == PREEMPTED, said
    done = len(moved.read_metrics())
    assert 2 <= done < STEPS
    assert f"saved at step {done}" in said

    # four processes, on a mesh of another shape
    four = launched(texts, 4, 1, "compare", *out, *mesh(fsdp=2, seq=2))
    said = four.communicate(timeout=300)[0]
    assert four.returncode == 0, said
    assert f"resuming at step {done} of {STEPS}" in said
    said = one.communicate(timeout=300)[0]
    assert one.returncode == 0, said

    for here, there in zip(moved.read_metrics(), alone.read_metrics(), strict=True):
        assert here["tokens"] == there["tokens"]  # the same batches
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
    results = [sorted((run.folder / "eval").glob("*.json")) for run in (moved, alone)]
    assert [len(found) for found in results] == [1, 1]
    curves = [[c["ppl"] for c in json.loads(p[0].read_text())["contexts"]] for p in results]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
    monkeypatch.setenv("TINY_TEXTS", f"{texts}/*.txt")
    experiment = load(HERE / "tiny.py").experiments["softmax"]
    experiment = replace(experiment, train=replace(experiment.train, steps=STEPS))
    ends = [jax.tree.leaves(restore_params(experiment, run)) for run in (moved, alone)]
    # Adam divides by the gradient's size, so rounding shows where a gradient is nearly zero
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


SHARE = """
import os, sys
import numpy as np, jax
from jax.sharding import NamedSharding
from lcx.data import packing
from lcx.parallel.processes import join
join()
from lcx.parallel.mesh import BATCH, Mesh, make_mesh, place

class Watched:
    read = 0
    def __getitem__(self, address):
        Watched.read += np.size(address)
        return np.zeros(np.shape(address), np.uint16)

mesh = make_mesh(Mesh(data=2, seq=4))
ids = packing.Lookup(Watched(), np.arange(8 * 64).reshape(8, 64), np.ones((8, 64), bool))
place(ids, NamedSharding(mesh, BATCH))
print("read", Watched.read, flush=True)
assert Watched.read == 8 * 64 // 2, Watched.read
"""


@pytest.mark.slow
def test_each_process_reads_its_own_share_of_the_tokens(tmp_path):
    local = [sys.executable, str(HERE.parent / "launch" / "local.py"), "--processes", "2"]
    local += ["--devices-per-process", "4", "--", sys.executable, "-c", SHARE]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "XLA_FLAGS": ""}
    subprocess.run(local, env=environment, check=True, timeout=120)
