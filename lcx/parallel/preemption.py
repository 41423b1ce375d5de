"""Being asked to end: the work in hand is finished and saved, and a fitting exit code says so."""

import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any, NoReturn

import jax
from jax.experimental.multihost_utils import reached_preemption_sync_point

PREEMPTED = 75
"""Exit code of a process that was asked to end, and has saved its work to be started again."""

EXIT_CODES = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGHUP: 128 + signal.SIGHUP}
"""Of who asked by hand (Ctrl-C, a terminal that was closed), as shells count them: nothing starts
the command again by itself."""

LISTENED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)

CALLS = count(1)
"""Numbers for the steps of a process's life: JAX wants them to grow, and each run begins anew."""


class Preempted(Exception):  # noqa: N818, it is no error
    """Work was asked to end, and has been saved. `code`: what the process should end with."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Preemption:
    """Listens for SIGINT, SIGHUP, SIGTERM and SIGUSR1 while it is entered. One at a time.

    The first makes `reached` true; a second SIGINT ends the process at once. A signal that was
    ignored when the process started (by nohup, say) stays ignored. With several processes JAX has
    taken SIGTERM since they joined, and agrees with the others on a step; the other signals are
    passed on to it. `say` is told what the user should know.

    Signals are heard by a thread: Python's own handlers wait until a compilation is over.
    """

    def __init__(self, say: Callable[[str], None] = lambda message: None):
        self._say = say
        self._heard: list[int] = []
        self._reached = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        hears, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for number in LISTENED:
            of_jax = number == signal.SIGTERM and several()
            if not of_jax and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, args=(hears,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._told.close()

    def reached(self) -> bool:
        """Whether to save and end; the same on all processes, which have to ask equally often."""
        if several():  # JAX says so once
            self._reached |= reached_preemption_sync_point(next(CALLS))
        return self._reached

    def end(self, what: str) -> NoReturn:
        """Raise Preempted: `what` was saved."""
        code = next((EXIT_CODES[n] for n in self._heard if n in EXIT_CODES), PREEMPTED)
        raise Preempted(f"{what}; the same command goes on from there", code)

    def _listen(self, hears: socket.socket) -> None:
        with hears:
            while number := hears.recv(1):
                self._hear(number[0])

    def _hear(self, number: int) -> None:
        if number not in self._before:
            return  # one that is another's
        if number == signal.SIGINT and signal.SIGINT in self._heard:
            at_once()
        if number == signal.SIGHUP:
            _leave_terminal()
        first = not self._heard
        self._heard.append(number)
        if not several():
            self._reached = True
        elif first:
            os.kill(os.getpid(), signal.SIGTERM)
        if first and number == signal.SIGINT:
            self._say("finishing what is under way and saving it; Ctrl-C again ends at once")


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized()


def at_once() -> NoReturn:
    """End this process as Ctrl-C does, without a word; the terminal gets its cursor back."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")
        sys.stderr.flush()
    os._exit(EXIT_CODES[signal.SIGINT])


def _leave_terminal() -> None:
    """Write nowhere in place of a terminal that is gone, where writing fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        if stat.S_ISCHR(os.fstat(output).st_mode):
            os.dup2(nowhere, output)
