"""Being asked to end: by a scheduler, by Ctrl-C, by a terminal that is closed."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from lcx.parallel.preemption import EXIT_CODES, LISTENED, PREEMPTED, Preempted, Preemption
from tests.jobs import until

pytestmark = pytest.mark.usefixtures("heeded")

WAITS = """
import os, signal, sys, time
exec(sys.argv[3])
from lcx.parallel.preemption import Preempted, Preemption
try:
    with Preemption(print) as preemption:
        print("listening", flush=True)
        while not preemption.reached():
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(float(sys.argv[1]))
        open(sys.argv[2], "w").write("saved")
        preemption.end("saved")
except Preempted as asked:
    sys.exit(asked.code)
"""


def waiting(seconds: float, saved, before: str = "", **options) -> subprocess.Popen:
    """before: what it does first. It cannot be a `preexec_fn`: JAX forbids to fork."""
    command = [sys.executable, "-c", WAITS, str(seconds), str(saved), before]
    return subprocess.Popen(command, text=True, **options)


@pytest.mark.parametrize("number", LISTENED)
def test_a_signal_is_noted_and_its_handler_given_back(number):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.reached()
        os.kill(os.getpid(), number)
        until(preemption.reached, "to be heard")
        with pytest.raises(Preempted, match="saved 3; the same command goes on") as asked:
            preemption.end("saved 3")
        assert asked.value.code == EXIT_CODES.get(number, PREEMPTED)
    assert signal.getsignal(number) == before
    with Preemption() as preemption:
        assert not preemption.reached()


def test_ctrl_c_is_answered_and_a_second_one_ends_at_once_without_a_traceback(tmp_path):
    child = waiting(60, tmp_path / "saved", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.readline() == "listening\n"
    child.send_signal(signal.SIGINT)
    said = {child.stdout.readline(), child.stdout.readline()}
    assert any("Ctrl-C again ends at once" in line for line in said)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert (child.returncode, out, err) == (130, "", "")
    assert not (tmp_path / "saved").exists()


def test_a_terminal_that_is_closed_leaves_time_to_save(tmp_path):
    ours, theirs = pty.openpty()
    child = waiting(
        0.2, tmp_path / "saved", "os.close(os.open(os.ttyname(0), os.O_RDWR))",  # its own from here
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while b"\n" not in said:
        said += os.read(ours, 100)
    os.close(ours)
    assert child.wait(20) == 129
    assert (tmp_path / "saved").read_text() == "saved"


def test_what_nohup_has_ignored_stays_ignored(tmp_path):
    ignores = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    child = waiting(0, tmp_path / "saved", ignores, stdout=subprocess.PIPE)
    assert child.stdout.readline() == "listening\n"
    child.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=20)
    assert child.returncode == PREEMPTED
