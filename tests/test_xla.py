"""Flags and options that this version of XLA may lack."""

import os
import subprocess
import sys

from lcx.parallel.xla import known_options, unknown_flags


def test_flags_that_xla_does_not_know_are_found_before_they_end_the_process():
    known = "--xla_force_host_platform_device_count=2"
    assert unknown_flags(known) == []
    assert unknown_flags(f"{known} --xla_nothing=1 --xla_none=true") == [
        "--xla_nothing=1",
        "--xla_none=true",
    ]


def test_options_that_xla_does_not_know_are_left_out():
    known = {"xla_backend_optimization_level": 0}
    assert known_options(known | {"xla_nothing": False}) == known


def test_the_command_names_an_unknown_flag_in_one_line():
    env = os.environ | {"XLA_FLAGS": "--xla_nothing=1"}
    command = [sys.executable, "-c", "from lcx.command.start import main; main()", "list"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "lcx: XLA_FLAGS: this version of XLA does not know --xla_nothing=1; take it out\n"
    )
