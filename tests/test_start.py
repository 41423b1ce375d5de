"""How the command starts: again, once, with the same words."""

import os
import subprocess
import sys

import pytest

from lcx.command.start import SETTING, huge_pages


def started(tmp_path, policy: str, tunables: str | None) -> list[str]:
    """What a script says of its environment and arguments after it called `huge_pages`."""
    (tmp_path / "enabled").write_text(policy)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys; from pathlib import Path; from lcx.command.start import huge_pages\n"
        "print('begun', flush=True)\n"
        f"huge_pages(Path({str(tmp_path / 'enabled')!r}))\n"
        "print(os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:], sep='|')\n"
    )
    env = {n: v for n, v in os.environ.items() if n != "GLIBC_TUNABLES"}
    if tunables is not None:
        env["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, str(script), "a b", "--set=x=1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="the policy is Linux's")
@pytest.mark.parametrize(
    ("policy", "before", "after", "starts"),
    [
        ("always [madvise] never", None, SETTING, 2),
        ("always [madvise] never", "glibc.malloc.check=0", f"glibc.malloc.check=0:{SETTING}", 2),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0", 1),
        ("[always] madvise never", None, "None", 1),
        ("always madvise [never]", None, "None", 1),
    ],
)
def test_a_process_starts_again_only_where_it_gains_large_pages(
    tmp_path, policy, before, after, starts
):
    *begun, last = started(tmp_path, policy, before)
    assert begun == ["begun"] * starts
    assert last == f"{after}|a b|--set=x=1"


def test_nothing_happens_where_the_system_has_no_such_policy(tmp_path):
    huge_pages(tmp_path / "absent")


def test_ctrl_c_ends_the_command_where_an_exception_would_be_lost():
    """As in a destructor: while JAX is imported its callbacks run there."""
    script = (
        "import os, signal, lcx.command.start as start\n"
        "class Lost:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "def work():\n"
        "    Lost()\n"
        "    print('went on')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "start._main = work; start.main()\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "lcx: interrupted\n")
