"""The launchers: real processes, a gcloud that pretends, the schema of a JobSet."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.jobs import WORK, until

ROOT = Path(__file__).parents[1]


@pytest.fixture
def work(tmp_path) -> Path:
    """A folder with a program that joins, adds up, and then dies, waits to be told, or ends."""
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


def local(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch/local.py"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_local_processes_find_each_other(work):
    command = ["--", sys.executable, "work.py", "ends", "--set", "a=b c"]
    launcher = local(work, "--processes", "2", "--devices-per-process", "2", "--logs=.", *command)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, err
    assert "process 0 sums 2.0 devices 2 --set a=b c" in out
    assert "process 1 sums" not in out
    assert "process 1 sums 2.0 devices 2 --set a=b c" in (work / "process-1.log").read_text()


@pytest.mark.slow
def test_when_a_local_process_dies_the_others_are_ended(work):
    launcher = local(work, "--processes=2", "--logs=.", "--", sys.executable, "work.py", "dies")
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "process 1 of 2 ended with 137" in err
    assert err.rstrip().endswith("the cause")


def warned(work, number: int) -> tuple[int, str, str]:
    """Exit code and output of two processes that are sent a signal while they work."""
    command = ["--requeue=1", "--logs=.", "--", sys.executable, "work.py", "waits"]
    launcher = local(work, "--processes=2", *command)
    until(lambda: len(list(work.glob("ready-*"))) == 2, "starting")
    launcher.send_signal(number)
    out, err = launcher.communicate(timeout=60)
    return launcher.returncode, out, err


def test_a_local_job_that_is_preempted_starts_again(work):
    code, out, err = warned(work, signal.SIGUSR1)
    assert code == 0, err
    assert "preempted; start 2 of 2" in err
    assert out.count("process 0 sums") == 2


def test_a_local_launcher_that_is_told_to_end_does_not_start_again(work):
    code, out, err = warned(work, signal.SIGTERM)
    assert code == 75, err
    assert out.count("process 0 sums") == 1
    assert (work / "saved").exists()


GCLOUD = """#!{python}
import pathlib, sys
home = pathlib.Path({home!r})
with (home / "calls").open("a") as calls:
    print(*sys.argv[3:], file=calls)
line = " ".join(sys.argv[1:])
state = home / "state"
if " create " in line:
    state.write_text("READY")
elif " delete " in line:
    state.unlink()
elif " describe " in line:
    if not state.exists():
        sys.exit("not found")
    print("ACTIVE" if "queued-resources" in line else state.read_text())
elif " scp " in line:
    (home / "lcx.tar.gz").write_bytes(pathlib.Path(sys.argv[5]).read_bytes())
elif "LCX_PROCESSES" in line:
    first, *rest = (home / "ends").read_text().split()
    (home / "ends").write_text(" ".join(rest))
    if first == "lost":
        state.write_text("PREEMPTED")
        sys.exit(255)
    sys.exit(int(first))
"""

TPU = ["tpu", "--zone=z", "--type=v5litepod-16", "--runtime=v2-alpha-tpuv5-lite"]


@pytest.fixture
def gcloud(tmp_path, monkeypatch) -> Callable[..., tuple[int, list[str]]]:
    """Runs the TPU launcher with a gcloud whose commands end as told: exit code, gcloud's calls."""
    fake = tmp_path / "gcloud"
    fake.write_text(GCLOUD.format(python=sys.executable, home=str(tmp_path)))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def launch(ends: str, *options: str) -> tuple[int, list[str]]:
        (tmp_path / "ends").write_text(ends)
        command = ["--", "lcx", "train", "a file.py"]
        done = subprocess.run(
            [sys.executable, ROOT / "launch/tpu_vm.py", *TPU, *options, *command],
            capture_output=True,
            text=True,
        )
        calls = tmp_path / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else done.stdout.splitlines()
        return done.returncode, [line for line in lines if "describe" not in line]

    return launch


def kinds(calls: list[str]) -> list[str]:
    """What was done: a word for each call."""
    return [
        "run"
        if "LCX_PROCESSES=auto" in call
        else call.replace("queued-resources", "queue ").split()[1]
        for call in calls
    ]


def test_a_tpu_vm_is_made_used_and_deleted(gcloud, tmp_path):
    code, calls = gcloud("0", "--spot", "--setup=mount it")
    assert code == 0
    assert kinds(calls) == ["create", "scp", "ssh", "run", "delete"]
    version = "--version=v2-alpha-tpuv5-lite --spot --zone=z"
    assert calls[0] == f"tpu-vm create tpu --accelerator-type=v5litepod-16 {version}"
    assert calls[2].endswith("&& mount it --zone=z")
    assert calls[3].startswith("tpu-vm ssh tpu --worker=all --command=cd lcx && PATH=")
    assert "LCX_PROCESSES=auto lcx train 'a file.py'" in calls[3]
    listed = subprocess.run(
        ["tar", "-tzf", tmp_path / "lcx.tar.gz"], capture_output=True, text=True, check=True
    )
    assert {"pyproject.toml", "lcx/command/cli.py"} <= set(listed.stdout.splitlines())


@pytest.mark.parametrize(
    ("ends", "options", "code", "done"),
    [
        ("75 75 0", [], 0, "create scp ssh run run run delete"),
        ("75 75 0", ["--restarts=1"], 75, "create scp ssh run run delete"),
        ("2", [], 2, "create scp ssh run delete"),
        ("2", ["--keep"], 2, "create scp ssh run"),
        ("lost 0", [], 0, "create scp ssh run delete create scp ssh run delete"),
        ("0", ["--queue"], 0, "create scp ssh run delete"),
    ],
)
def test_a_tpu_vm_job_goes_on_after_preemptions_alone(gcloud, ends, options, code, done):
    got, calls = gcloud(ends, *options)
    assert got == code
    assert " ".join(kinds(calls)) == done
    assert ("queued-resources" in calls[0]) == ("--queue" in options)


def test_a_tpu_vm_that_was_there_before_is_left(gcloud, tmp_path):
    (tmp_path / "state").write_text("READY")
    code, calls = gcloud("0")
    assert code == 0
    assert kinds(calls) == ["scp", "ssh", "run"]


def test_a_dry_run_prints_and_runs_nothing(gcloud, tmp_path):
    code, lines = gcloud("", "--dry-run")
    assert code == 0
    assert all(line.startswith("+ gcloud compute tpus tpu-vm ") for line in lines)
    assert len(lines) == 5
    assert not (tmp_path / "calls").exists()


def strict(schema: object) -> object:
    """The schema, refusing fields that it does not name, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(part) for name, part in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture(scope="module")
def jobset() -> jsonschema.Draft202012Validator:
    schema = strict(json.loads((ROOT / "tests/jobset.schema.json").read_text()))
    schema["properties"]["metadata"] = {"type": "object"}  # left open by the definition
    return jsonschema.Draft202012Validator(schema)


def gke(*options: str) -> subprocess.CompletedProcess:
    script = [sys.executable, ROOT / "launch/gke.py", "trial", "--image=lcx:1"]
    command = ["--", "lcx", "train", "a.py", "--set", "mesh.data=8"]
    return subprocess.run([*script, *options, *command], capture_output=True, text=True)


GPU = ("--gpu=nvidia-h100-80gb", "--pods=2", "--volume=runs")


def test_a_gpu_job_set_fits_the_schema(jobset):
    made = yaml.safe_load(gke(*GPU, "--spot", "--grace=600").stdout)
    jobset.validate(made)
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 3
    [rule] = made["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    [workers] = made["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (2, 2, "Indexed")
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy takes no other
    assert pod["terminationGracePeriodSeconds"] == 600
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    [container] = pod["containers"]
    assert container["command"] == ["lcx", "train", "a.py", "--set", "mesh.data=8"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    said = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert said["LCX_PROCESSES"] == "2"
    assert said["JAX_COORDINATOR_ADDRESS"] == "trial-workers-0-0.trial:8476"


def test_a_tpu_job_set_fits_the_schema(jobset):
    made = yaml.safe_load(gke("--tpu=tpu-v5-lite-podslice", "--topology=4x4").stdout)
    jobset.validate(made)
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == 4
    [container] = job["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "LCX_PROCESSES", "value": "auto"}]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_the_schema_refuses_what_kubernetes_would(jobset):
    text = gke(*GPU).stdout
    for right, wrong in [
        ("podFailurePolicy:", "podFailurePolicies:"),
        ("terminationGracePeriodSeconds: 300", "terminationGracePeriodSeconds: long"),
        ("RestartJobSetAndIgnoreMaxRestarts", "IgnoreMaxRestarts"),
    ]:
        made = yaml.safe_load(text.replace(right, wrong))
        assert not jobset.is_valid(made), wrong


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give either --tpu or --gpu"),
        (["--tpu=t"], "--tpu needs --topology"),
        (["--tpu=t", "--topology=3x3"], "no multiple of 4 chips"),
    ],
)
def test_a_job_set_that_cannot_be_is_refused(options, says):
    done = gke(*options)
    assert done.returncode == 2
    assert says in done.stderr
