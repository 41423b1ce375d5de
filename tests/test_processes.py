"""Several processes: how they find each other, what they say when they do not, how they end."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import pytest

from lcx.parallel import processes
from lcx.parallel.preemption import PREEMPTED
from lcx.parallel.processes import JoinError, local_devices

pytestmark = pytest.mark.usefixtures("heeded")

JOINS = """
import os, signal, sys, time
from lcx.parallel import preemption as asked, processes
try:
    processes.join()
except (ValueError, processes.JoinError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
import jax
from jax.experimental.multihost_utils import process_allgather
me = jax.process_index()
def gather():
    return process_allgather(jax.numpy.array([me])).ravel().tolist()
"""

MEETS = JOINS + "print(f'met {gather()} {jax.local_device_count()} {jax.device_count()}')"

STEPS = (
    JOINS
    + """
gather()
with asked.Preemption() as preemption:
    print('steps', flush=True)
    for step in range(600):
        time.sleep(0.05)
        if preemption.reached():
            os.kill(os.getpid(), signal.SIGTERM)  # again, while the work is saved
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
            assert preemption.reached()
            print(f'saved {step}.', flush=True)
            sys.exit(asked.PREEMPTED)
"""
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(code: str, number: int, of: int, port: int, timeout: int = 60) -> subprocess.Popen:
    clean = {n: v for n, v in os.environ.items() if n != "XLA_FLAGS"}
    env = clean | {
        "LCX_PROCESSES": str(of),
        "LCX_PROCESS": str(number),
        "LCX_TIMEOUT": str(timeout),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(children: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    try:
        said = [child.communicate(timeout=60) for child in children]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return [(child.returncode, *words) for child, words in zip(children, said, strict=True)]


@pytest.fixture
def plain(monkeypatch):
    """An environment in which no launcher has said anything."""
    for name in list(os.environ):
        if name.startswith(("LCX_PROCESS", "SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORD")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("environment", [{}, {"LCX_PROCESSES": "1"}])
def test_one_process_joins_nothing(plain, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.join()
    assert not jax.distributed.is_initialized()


ADDRESS = {"JAX_COORDINATOR_ADDRESS": "localhost:1"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"LCX_PROCESSES": "two"}, "LCX_PROCESSES=two: must be a whole number from 1 or auto"),
        ({"LCX_PROCESSES": "0"}, "LCX_PROCESSES=0: must be a whole number from 1"),
        ({"LCX_PROCESSES": "2"}, "LCX_PROCESSES=2 needs LCX_PROCESS, a number"),
        ({"LCX_PROCESSES": "2", "LCX_PROCESS": "-1"}, "LCX_PROCESS=-1: must be a whole number"),
        ({"LCX_PROCESSES": "2", "LCX_PROCESS": "2"}, "of 2 processes the numbers are 0 to 1"),
        ({"LCX_PROCESSES": "2", "LCX_PROCESS": "1"}, "needs JAX_COORDINATOR_ADDRESS=host:port"),
        ({"LCX_PROCESSES": "auto"}, "not started by Slurm"),
        (ADDRESS | {"LCX_PROCESSES": "auto"}, "not started by Slurm"),
        ({"LCX_PROCESSES": "2", "LCX_TIMEOUT": "soon"}, "LCX_TIMEOUT=soon: must be a whole number"),
        *[
            ({"LCX_PROCESSES": "2", "LCX_PROCESS": "1", "JAX_COORDINATOR_ADDRESS": bad}, "host:por")
            for bad in ("localhost", ":80", "localhost:0", "localhost:x", "localhost:70000")
        ],
    ],
)
def test_an_environment_that_does_not_fit_is_refused(plain, monkeypatch, environment, says):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says):
        processes.join()


def other_clusters(**method):
    return SimpleNamespace(ClusterEnv=SimpleNamespace(**method))


@pytest.mark.parametrize(
    "clusters",
    [
        None,
        SimpleNamespace(),
        other_clusters(),
        other_clusters(auto_detect_unset_distributed_params=lambda: None),
    ],
    ids=["no module", "no class", "no method", "other arguments"],
)
def test_a_jax_without_its_private_detection_is_told(plain, monkeypatch, clusters):
    monkeypatch.setitem(sys.modules, "jax._src.clusters", clusters)
    monkeypatch.setenv("LCX_PROCESSES", "auto")
    with pytest.raises(ValueError, match=r"does not say how it finds processes; give LCX_PROCESS"):
        processes.join()


def test_processes_meet():
    port = free_port()
    children = [start(MEETS, number, 2, port) for number in range(2)]
    for code, out, err in ended(children):
        assert code == 0, err
        assert "met [0, 1] 1 2" in out


@pytest.mark.slow
def test_all_hear_which_processes_did_not_come():
    port = free_port()
    came = ended([start(MEETS, number, 4, port, timeout=8) for number in (0, 2)])
    says = "JoinError: of 4 processes, 1, 3 did not come within 8 s\n"
    assert [(code, err) for code, _, err in came] == [(1, says)] * 2


def test_a_missing_process_0_is_named():
    port = free_port()
    [(code, _, err)] = ended([start(MEETS, 1, 2, port, timeout=1)])
    assert code == 1
    assert "JoinError: process 0 did not come within 1 s" in err
    assert f"localhost:{port}" in err


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ([(0, 3), (1, 3), (1, 3)], "two processes have the number 1"),
        ([(0, 2), (1, 3)], "process 1 was given 3 processes, process 0 of 2"),
    ],
)
def test_numbers_that_contradict_each_other_are_told_to_all(numbers, says):
    port = free_port()
    for code, _, err in ended([start(MEETS, number, of, port) for number, of in numbers]):
        assert code == 1
        assert says in err


def test_a_port_in_use_is_an_error_of_process_0(plain, monkeypatch):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in [("LCX_PROCESSES", 2), ("LCX_PROCESS", 0)]:
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"localhost:{port}")
        with pytest.raises(JoinError, match=f"process 0 cannot listen on port {port}"):
            processes.join()
        # another process waits no longer than it was told to, and a moment for the answer
        monkeypatch.setattr(processes, "GRACE", 1)
        monkeypatch.setenv("LCX_PROCESS", "1")
        monkeypatch.setenv("LCX_TIMEOUT", "1")
        began = time.monotonic()
        with pytest.raises(JoinError, match="is not process 0 of this job"):
            processes.join()
        assert time.monotonic() - began < 3


def test_strangers_at_the_port_change_nothing():
    port = free_port()
    children = [start(MEETS, 0, 2, port)]
    for _ in range(300):
        try:
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            break
        except OSError:
            time.sleep(0.05)
    children.append(start(MEETS, 1, 2, port))
    assert [code for code, _, _ in ended(children)] == [0, 0]


@pytest.mark.parametrize("how", ["processes.leave(3)", "raise KeyError('mine')"])
def test_an_error_of_one_process_ends_it_with_its_code_and_the_other_soon(how):
    port = free_port()
    code = JOINS + f"gather()\nif me == 1: {how}\ngather()"
    began = time.monotonic()
    (first, _, err), (second, _, _) = ended([start(code, n, 2, port) for n in range(2)])
    assert second == (3 if "leave" in how else 1)
    assert first == 1
    assert "Gloo" in err
    assert time.monotonic() - began < 40  # and not the 60 seconds that JAX was told to wait


@pytest.mark.parametrize(
    ("number", "to"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0), (signal.SIGINT, 0)]
)
def test_all_processes_end_at_the_same_step(number, to):
    port = free_port()
    children = [start(STEPS, n, 2, port) for n in range(2)]
    for child in children:
        while "steps" not in child.stdout.readline():
            assert child.poll() is None
    children[to].send_signal(number)
    (first, said, err), (second, also, _) = ended(children)
    assert first == second == PREEMPTED, err
    saved = [re.findall(r"saved \d+\.", out) for out in (said, also)]  # gloo prints, too
    assert len(saved[0]) == 1
    assert saved[0] == saved[1]


GPUS = {"CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, [1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NODEID": "1"} | GPUS, [1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1"} | GPUS, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NODEID": "0"}, [1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NODEID": "1"}, None),
        (
            {
                "SLURM_STEP_TASKS_PER_NODE": "4",
                "SLURM_NODEID": "0",
                "CUDA_VISIBLE_DEVICES": "3",
            },
            None,
        ),
    ],
)
def test_a_slurm_task_uses_all_gpus_that_are_its_own(environment, devices):
    assert local_devices([1], environment) == devices
