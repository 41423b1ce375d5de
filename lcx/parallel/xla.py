"""What this version of XLA knows, whose flags and options come and go; what it has compiled."""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax

KEPT = 2**31
"""Bytes of compiled code that are kept."""


def unknown_flags(flags: str) -> list[str]:
    """Those of XLA_FLAGS that this XLA does not know: with one, it ends the process.

    Asked of a process of its own, which takes about a second.
    """
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    ask = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(ask, env=env, capture_output=True, text=True)
    found = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", done.stderr)
    return re.findall(r"--\S+", found.group(1)) if found and done.returncode else []


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the compiler options that this XLA knows."""
    return {name: value for name, value in options.items() if _knows(name, value)}


@cache
def _knows(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def keep_compiled(folder: Path) -> None:
    """Keep what is compiled in a folder, for later processes; JAX's own settings come first.

    At most `KEPT` bytes: what was not used for the longest time goes. Machine code for CPUs fits
    those that know the same instructions, so each kind of them has a folder of its own.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    place = folder / hashlib.blake2b(_instructions().encode(), digest_size=4).hexdigest()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_compilation_cache_max_size", KEPT)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _instructions() -> str:
    """What this machine's CPU knows, as Linux says it; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    known = (line for line in lines if line.startswith(("flags", "Features", "model name")))
    return " ".join([platform.machine(), platform.processor(), *dict.fromkeys(known)])
