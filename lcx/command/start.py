"""How the `lcx` command starts: it asks for large pages of memory before anything takes memory."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

SETTING = "glibc.malloc.hugetlb=1"
"""A tunable of glibc 2.35 and later, read once, when a process starts."""


def huge_pages(policy: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> None:
    """Start this process again with memory in pages of 2 MB, where Linux gives them on demand.

    To be called first. XLA's CPU backend takes and returns large buffers in every step, and each
    time Linux hands out 4 kB pages one by one (decision 10). Does nothing where GLIBC_TUNABLES
    already speaks of huge pages, or where the system gives them always, or never.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or not policy.exists():
        return
    if "[madvise]" in policy.read_text():
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{SETTING}".lstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def interrupted(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """End at once, as Ctrl-C does.

    No exception: where JAX is being imported one is lost, or crashes the process.
    """
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{cursor}lcx: interrupted\n".encode())
    os._exit(128 + number)


def main() -> None:
    """Entry point of `lcx`. Ctrl-C ends it without a traceback, wherever it is."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, interrupted)
    try:
        _main()
    except KeyboardInterrupt:
        interrupted()


def _main() -> None:
    huge_pages()
    if flags := os.environ.get("XLA_FLAGS", ""):
        from lcx.parallel.xla import unknown_flags

        if unknown := unknown_flags(flags):  # which XLA would answer by ending the process
            names = " ".join(unknown)
            sys.exit(f"lcx: XLA_FLAGS: this version of XLA does not know {names}; take it out")
    from lcx.command.cli import main

    main()
