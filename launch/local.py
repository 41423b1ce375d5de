"""Start several processes of a command on this machine, which find each other.

    python launch/local.py --processes 4 -- lcx train experiments/quickstart.py --set mesh.data=4

Shows what process 0 says; the others write to files. When one fails the others are ended, and its
exit code is this command's. docs/launching/local.md says more.
"""

import argparse
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PREEMPTED = 75
"""What a process ends with that was asked to end and has saved its work."""

BY_HAND = (129, 130)
"""The same, where a closed terminal or Ctrl-C asked."""

GRACE = 7
"""Seconds that the others have to end by themselves when one has failed. lcx itself takes 5."""


class Job:
    """One start of all processes."""

    def __init__(self, command: list[str], processes: int, devices: int, logs: Path):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self.children: list[subprocess.Popen] = []
        self.ends: queue.Queue[tuple[int, int]] = queue.Queue()
        for number in range(processes):
            mine = range(number * devices, (number + 1) * devices)
            flags = os.environ.get("XLA_FLAGS", "")
            environment = os.environ | {
                "LCX_PROCESSES": str(processes),
                "LCX_PROCESS": str(number),
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, mine)),  # GPUs; CPUs are no such devices
                "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
            }
            with contextlib.ExitStack() as stack:
                out = None if number == 0 else stack.enter_context(log(logs, number).open("ab"))
                # a session of its own: a signal reaches what the command has started, too
                child = subprocess.Popen(
                    command, env=environment, stdout=out, stderr=out, start_new_session=True
                )
            self.children.append(child)
            threading.Thread(target=self._await, args=(number,), daemon=True).start()

    def _await(self, number: int) -> None:
        self.ends.put((number, self.children[number].wait()))

    def signal(self, number: int) -> None:
        """Send a signal to every process that still runs."""
        for child in self.children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)

    def wait(self, logs: Path) -> int:
        """The exit code: 0, or that of the first that failed. Ends the others."""
        failed, until = None, None
        for _ in self.children:
            left = None if until is None else max(until - time.monotonic(), 0.01)
            try:
                number, code = self.ends.get(timeout=left)
            except queue.Empty:
                self.signal(signal.SIGKILL)  # JAX keeps SIGTERM from ending a process
                break
            if code and failed is None:
                failed, until = (number, code), time.monotonic() + GRACE
        if failed is None:
            return 0
        number, code = failed
        code = code if code > 0 else 128 - code  # as shells count an end by a signal
        if code not in (PREEMPTED, *BY_HAND):
            print(f"process {number} of {len(self.children)} ended with {code}", file=sys.stderr)
            if number > 0:
                lines = log(logs, number).read_text(errors="replace").splitlines()[-20:]
                print(f"the end of {log(logs, number)}:", *lines, sep="\n", file=sys.stderr)
        return code


def log(folder: Path, number: int) -> Path:
    """Where a process other than 0 writes."""
    return folder / f"process-{number}.log"


def main() -> int:
    """Entry point: the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument(
        "--devices-per-process", type=int, default=1, help="GPUs, or pieces of the CPU; 1"
    )
    parser.add_argument("--logs", type=Path, help="folder of the others' output; a new one")
    parser.add_argument(
        "--requeue", type=int, default=0, help="new starts after an end with exit code 75; 0"
    )
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    if options.processes < 1 or options.devices_per_process < 1:
        parser.error("--processes and --devices-per-process must be at least 1")
    logs = options.logs or Path(tempfile.mkdtemp(prefix="lcx-"))
    logs.mkdir(parents=True, exist_ok=True)
    if options.processes > 1:
        print(f"process 0 writes here, the others to {logs}", file=sys.stderr)
    jobs: list[Job] = []
    ending = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal ending
        ending = ending or number != signal.SIGUSR1
        if jobs:
            jobs[-1].signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, pass_on)
    for start in range(1, options.requeue + 2):
        if start > 1:
            print(f"preempted; start {start} of {options.requeue + 1}", file=sys.stderr)
        jobs.append(Job(options.command, options.processes, options.devices_per_process, logs))
        if ending:  # told so while the processes were being started
            jobs[-1].signal(signal.SIGTERM)
        code = jobs[-1].wait(logs)
        if code != PREEMPTED or ending:
            break
    return code


if __name__ == "__main__":
    sys.exit(main())
