"""The Slurm script under a real Slurm: two nodes, both on this machine."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import WORK, until

# one group: two Slurms side by side would number their jobs alike, and JAX's ports go by these
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

ROOT = Path(__file__).parents[1]

SLURM = """
ClusterName=lcx
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={control}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/control.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={one} RealMemory=500
NodeName={host}b NodeHostname={host}b NodeAddr=127.0.0.1 Port={two} RealMemory=500
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=60
"""


def install_slurm() -> None:
    """Slurm and what it signs with, from Debian's packages. Skips the test where it cannot."""
    if os.getuid() != 0:
        pytest.skip("Slurm's daemons need root")
    if all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        return
    if not shutil.which("apt-get"):
        pytest.skip("Slurm is not installed, and there is no apt-get")
    packages = ["slurmctld", "slurmd", "slurm-client", "munge"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=60", *words]
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"apt-get {words[0]} failed: {done.stderr.strip()[-200:]}")


@pytest.fixture
def work(tmp_path) -> Path:
    """A folder with the program."""
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of two nodes, both on this machine; `sbatch` and the others find it."""
    install_slurm()
    host = socket.gethostname().split(".")[0]
    try:
        socket.gethostbyname(host)
    except OSError:
        pytest.skip(f"{host}, this machine's name, has no address")
    folder = tmp_path_factory.mktemp("slurm")
    munge = folder / "munge"
    for name in ("munge", "state", host, f"{host}b"):
        (folder / name).mkdir(mode=0o755)
    (munge / "key").write_bytes(os.urandom(128))
    (munge / "key").chmod(0o600)
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for free in (a, b, c):
            free.bind(("localhost", 0))
        control, one, two = (free.getsockname()[1] for free in (a, b, c))
    conf = folder / "slurm.conf"
    conf.write_text(SLURM.format(folder=folder, host=host, control=control, one=one, two=two))
    files = [
        f"--{kind}={munge / name}"
        for kind, name in [
            ("socket", "socket"),
            ("key-file", "key"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        ]
    ]
    daemons = [
        ["munged", "--foreground", "--force", *files],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", host],
        ["slurmd", "-D", "-N", f"{host}b"],
    ]
    started = []
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w") as log:
        patch.setenv("SLURM_CONF", str(conf))
        try:
            for command in daemons:
                started.append(subprocess.Popen(command, stdout=log, stderr=log))
                if command[0] == "munged":
                    until(lambda: (munge / "socket").exists(), "munged")
            until(lambda: asked("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "Slurm's start")
            yield
        finally:
            for daemon in reversed(started):
                daemon.terminate()
                daemon.wait(timeout=20)


def asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def submitted(folder: Path, *command: str) -> str:
    """The number of a job of two nodes, a task on each."""
    done = subprocess.run(
        [
            *("sbatch", "--parsable", "--nodes=2", "--time=5", "--output=job.log"),
            ROOT / "launch/slurm.sbatch",
            *command,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def state(job: str) -> str:
    shown = asked("scontrol", "show", "job", job, "--oneliner")
    words = dict(word.partition("=")[::2] for word in shown.split())
    return " ".join(words.get(name, "") for name in ("JobState", "ExitCode", "Restarts"))


def test_slurm_tasks_find_each_other(slurm, work):
    job = submitted(work, sys.executable, "work.py", "ends", "a b")
    until(lambda: state(job) == "COMPLETED 0:0 0", "the job")
    said = (work / "job.log").read_text()
    assert "process 0 sums 2.0" in said
    assert "process 1 sums 2.0" in said
    assert said.count(" a b") == 2


def test_a_slurm_job_that_is_preempted_is_queued_again_and_ends_well(slurm, work):
    job = submitted(work, sys.executable, "work.py", "waits")
    until(lambda: len(list(work.glob("ready-*"))) == 2, "starting")
    # as before its time limit: to the tasks, and not to the script
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    until(lambda: state(job).startswith("PENDING"), "queueing again")
    # Slurm waits two minutes by itself
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    until(lambda: state(job) == "COMPLETED 0:0 1", "the second start")
    assert (work / "job.log").read_text().count("process 0 sums") == 2


def test_a_slurm_job_that_fails_is_not_queued_again(slurm, work):
    job = submitted(work, "bash", "-c", "exit 2")
    until(lambda: state(job) == "FAILED 2:0 0", "the job")
