"""What the tests of launchers start, and how they wait for it."""

import time
from collections.abc import Callable

WORK = """
import os, sys, time
from lcx.parallel import preemption as asked, processes
processes.join()
import jax
from jax.experimental.multihost_utils import process_allgather
total = process_allgather(jax.numpy.ones(1)).sum()
me, how = jax.process_index(), sys.argv[1]
said = f"process {me} sums {total} devices {jax.local_device_count()} {' '.join(sys.argv[2:])}"
print(said, flush=True)  # in one piece: gloo prints, too
if how == "dies" and me == 1:
    print("the cause", flush=True)
    os.kill(os.getpid(), 9)
if how == "waits" and not os.path.exists("saved"):
    with asked.Preemption() as preemption:
        open(f"ready-{me}", "w").close()
        while not preemption.reached():
            time.sleep(0.05)
    process_allgather(jax.numpy.ones(1))
    open("saved", "w").close()
    sys.exit(asked.PREEMPTED)
"""
"""A program that joins and adds up, and then dies, waits until it is asked to end, or ends."""


def until(true: Callable[[], bool], what: str, seconds: float = 40) -> None:
    """Wait until it is true; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} took more than {seconds} s"
        time.sleep(0.1)
