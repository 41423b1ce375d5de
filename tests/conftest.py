"""Fixtures that several rooms share. Eight host devices stand in for a mesh.

Tests run on the CPU whatever else the machine has; `JAX_PLATFORMS=cuda,cpu pytest -n 8 FILES` runs
on a GPU what needs no mesh, with products in fp32, as `Policy` has them.

Most of a test's time goes into machine code that runs once. LLVM is told not to optimize it and not
to cut it into parts for several threads, and XLA to use its older emitters of fused loops, where it
still has them: together, compiling takes a fifth of the time. What computes for long asks for
optimized code itself, by `tests.optimized`.
"""

import os
import random
import runpy
import signal
from pathlib import Path

import pytest

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
)

if os.environ.setdefault("JAX_PLATFORMS", "cpu") != "cpu":
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # workers share a device
elif "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has them from the process that started it
    # run from its file: the package must not be imported before jaxtyping is told to check it
    xla = runpy.run_path(str(Path(__file__).parent.parent / "lcx" / "parallel" / "xla.py"))
    unknown = xla["unknown_flags"](" ".join(FLAGS))
    chosen = (flag for flag in FLAGS if flag not in unknown)
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *chosen])


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in a hook of the same name
def pytest_collection_modifyitems(items):
    """Which tests a worker runs together: a sublayer's laws share what they have compiled.

    By default laws are tried on one sublayer of each operation; the others are `rest`.
    """
    from tests.contracts.cases import EVERY_DAY

    for item in items:
        sublayer = getattr(item, "callspec", None) and item.callspec.params.get("sublayer")
        item.add_marker(pytest.mark.xdist_group(f"{item.path}{sublayer or ''}"))
        if sublayer is not None and "contracts" in item.path.parts and sublayer not in EVERY_DAY:
            item.add_marker(pytest.mark.rest)


WORDS = "the a of to and in is it you that he was for on are with as his they at be this".split()


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """Forty small documents of words, 300 to 3,000 bytes each; bytes that no UTF-8 text has."""
    folder = tmp_path_factory.mktemp("texts")
    chance = random.Random(0)
    for number in range(40):
        words = chance.choices(WORDS, k=chance.randrange(80, 800))
        (folder / f"{number:02}.txt").write_bytes(" ".join(words).encode() + b"\xff\xfe\n")
    return folder


@pytest.fixture
def heeded():
    """Signals that this process was told to ignore, by nohup or as a job in the background."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """No test reads or leaves anything in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LCX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
