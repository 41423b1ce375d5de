"""What this version of XLA knows: its flags and options come and go with jaxlib."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax


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
