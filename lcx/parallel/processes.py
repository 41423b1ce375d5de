"""Several processes as one: how they find each other, and how they end.

JAX's multi-controller runtime does the work. What is here reads the environment that a launcher
sets, and tells what is wrong before JAX, which raises nothing when a process does not come.
"""

import atexit
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import jax
from jax.experimental.multihost_utils import sync_global_devices

from lcx.parallel.preemption import several

GRACE = 5
"""Seconds that a process gives the others: to end as well, and to say who is missing."""


class JoinError(RuntimeError):
    """The processes of a job did not find each other."""


def join() -> None:
    """Find the other processes of this job, if it has any. To be called before devices are used.

    LCX_PROCESSES says how many there are: nothing or 1 for one, a number (then LCX_PROCESS is this
    one's, from 0, and JAX_COORDINATOR_ADDRESS where process 0 listens), or `auto` for what JAX
    finds out itself from Slurm, Open MPI, Cloud TPU or Kubernetes. They wait for each other, and
    for one that no longer answers, LCX_TIMEOUT seconds, 300 by default.

    Raises ValueError where the environment does not fit together, JoinError where some processes
    do not come (it says which, on each of the others) or process 0 cannot listen.
    """
    asked = os.environ.get("LCX_PROCESSES")
    if asked is None:
        return
    timeout = _number("LCX_TIMEOUT", "300", at_least=1)
    address, processes, process, devices = _found(timeout) if asked == "auto" else _said()
    if processes == 1:
        return
    host, port = _split(address)
    if process == 0:
        _call_the_roll(port, processes, timeout)
    else:
        _answer(host, port, processes, process, timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        address,
        processes,
        process,
        devices,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=min(timeout, 100),  # JAX's own default
        shutdown_timeout_seconds=timeout,
    )
    atexit.register(_crashed)


def is_primary() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(what: str) -> None:
    """Wait until all processes have come here, at `what`; nothing with a single one."""
    if several():
        sync_global_devices(what)


def leave(code: int) -> NoReturn:
    """End this process after an error. Raises SystemExit.

    At its end a process waits for the others, as JAX wants it. An error that all have met ends
    them together; where only this one has, the others work on and wait for it, so it goes.
    """
    _go_soon(code)
    sys.exit(code)


def local_devices(devices: Sequence[int] | None, env: Mapping[str, str]) -> Sequence[int] | None:
    """Which devices of its machine a process uses under Slurm; None for all that it sees.

    `devices`: JAX's choice, the one with the task's number on its node. It fits several tasks that
    see the same GPUs; a task alone on its node uses them all, and one that Slurm bound to a single
    GPU sees that as number 0. No effect on CPU and TPU.
    """
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE")
    if tasks is None:
        return devices
    nodes: list[int] = []
    for part in tasks.split(","):  # 4(x2),3 are nodes of 4, 4 and 3 tasks
        size, _, times = part.rstrip(")").partition("(x")
        nodes += [int(size)] * int(times or 1)
    alone = nodes[int(env["SLURM_NODEID"])] == 1
    bound = "," not in env.get("CUDA_VISIBLE_DEVICES", ",")
    return None if alone or bound else devices


def _go_soon(code: int) -> None:
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        timer = threading.Timer(GRACE, os._exit, (code,))
        timer.daemon = True
        timer.start()


def _crashed() -> None:
    # before JAX waits for the others, which it does at exit too; Python sets it with a traceback
    if hasattr(sys, "last_value"):
        _go_soon(1)


def _said() -> tuple[str, int, int, None]:
    """Address, processes and this process's number, as the environment says them."""
    processes = _number("LCX_PROCESSES", None, at_least=1)
    if processes == 1:
        return "", 1, 0, None  # nobody to be found
    process = _number("LCX_PROCESS", None, at_least=0)
    if process >= processes:
        numbers = f"of {processes} processes the numbers are 0 to {processes - 1}"
        raise ValueError(f"LCX_PROCESS={process}: {numbers}")
    if not (address := os.environ.get("JAX_COORDINATOR_ADDRESS")):
        raise ValueError(f"LCX_PROCESSES={processes} needs JAX_COORDINATOR_ADDRESS=host:port")
    return address, processes, process, None


def _found(timeout: int) -> tuple[str, int, int, Sequence[int] | None]:
    """The same, and this process's devices, as JAX finds them out."""
    try:  # JAX has no public name for this
        from jax._src.clusters import ClusterEnv

        given = os.environ.get("JAX_COORDINATOR_ADDRESS")
        found = ClusterEnv.auto_detect_unset_distributed_params(
            given, None, None, None, None, timeout
        )
    except (ImportError, AttributeError, TypeError) as error:  # gone, or called in another way
        raise ValueError(
            f"LCX_PROCESSES=auto: jax {jax.__version__} does not say how it finds processes; "
            "give LCX_PROCESSES=<number>, LCX_PROCESS and JAX_COORDINATOR_ADDRESS"
        ) from error
    address, processes, process, devices = found
    if address is None or processes is None or process is None:
        raise ValueError(
            "LCX_PROCESSES=auto: this process was not started by Slurm (srun), Open MPI, Cloud TPU "
            "or Kubernetes; give LCX_PROCESSES=<number>, LCX_PROCESS and JAX_COORDINATOR_ADDRESS"
        )
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return address, processes, process, None  # read by jax.distributed.initialize
    return address, processes, process, local_devices(devices, os.environ)


def _number(name: str, default: str | None, at_least: int) -> int:
    text = os.environ.get(name, default)
    if text is None:
        raise ValueError(f"LCX_PROCESSES={os.environ['LCX_PROCESSES']} needs {name}, a number")
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < at_least:
        also = " or auto" if name == "LCX_PROCESSES" else ""
        raise ValueError(f"{name}={text}: must be a whole number from {at_least}{also}")
    return int(text)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address}: must be host:port, as in node1:8476")
    return host.strip("[]"), int(port)


def _call_the_roll(port: int, processes: int, timeout: int) -> None:
    """Process 0: wait until all others have come, then tell each of them how it went.

    On the port that JAX takes next, which would end all when one is missing, not saying which.
    """
    until = time.monotonic() + timeout
    trouble = ""
    here: set[int] = set()
    family = socket.AF_INET6 if (both := socket.has_dualstack_ipv6()) else socket.AF_INET
    try:
        door = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise JoinError(
            f"process 0 cannot listen on port {port}: {error.strerror}. "
            "JAX_COORDINATOR_ADDRESS (or JAX_COORDINATOR_PORT, with auto) can name another"
        ) from error
    with door, ExitStack() as stack:
        guests: list[socket.socket] = []
        while not trouble and len(here) < processes - 1:
            left = max(until - time.monotonic(), 0.01)
            door.settimeout(left)
            guest = _try(lambda: door.accept()[0])
            if guest is None:
                missing = ", ".join(str(n) for n in range(1, processes) if n not in here)
                trouble = f"of {processes} processes, {missing} did not come within {timeout} s"
                break
            stack.enter_context(guest)
            hello = re.fullmatch(r"lcx (\d+) (\d+)", _line(guest, min(left, GRACE)))
            if not hello:
                continue  # a stranger
            guests.append(guest)
            number, of = map(int, hello.groups())
            if of != processes:
                trouble = f"process {number} was given {of} processes, process 0 of {processes}"
            elif number in here:
                trouble = f"two processes have the number {number} (LCX_PROCESS)"
            here.add(number)
        for guest in guests:
            _try(lambda guest=guest: guest.sendall(f"lcx {trouble}\n".encode()))
    if trouble:
        raise JoinError(trouble)


def _answer(host: str, port: int, processes: int, process: int, timeout: int) -> None:
    """Another process: say its number to process 0, and hear whether all have come."""
    until = time.monotonic() + timeout
    while True:
        left = until - time.monotonic()
        try:
            line = socket.create_connection((host, port), timeout=max(left, 0.1))
            if line.getsockname() != line.getpeername():
                break
            line.close()  # on one machine a socket can find itself, where nobody listens yet
        except OSError as error:
            if left <= 0:
                why = f"process {process} cannot reach {host}:{port} ({error})"
                raise JoinError(f"process 0 did not come within {timeout} s: {why}") from error
        time.sleep(0.2)
    with line:
        _try(lambda: line.sendall(f"lcx {process} {processes}\n".encode()))
        # Process 0 began to wait a moment before this one, and can say who is missing only when it
        # has waited for as long: a moment later than this one, on a busy machine.
        said = _line(line, timeout + GRACE)
    if not said.startswith("lcx"):
        raise JoinError(f"what listens at {host}:{port} is not process 0 of this job, or died")
    if trouble := said.removeprefix("lcx").strip():
        raise JoinError(trouble)


def _line(line: socket.socket, seconds: float) -> str:
    line.settimeout(seconds)
    return (_try(lambda: line.recv(1000)) or b"").decode(errors="replace").strip()


def _try(call: Callable[[], Any]) -> Any:
    """What the call returns; None where the other end is gone or silent."""
    try:
        return call()
    except OSError:
        return None
