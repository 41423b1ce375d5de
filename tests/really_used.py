"""Memory of a process that runs a training step, beside what `lcx.planning.compiled` says of it.

    python -m tests.really_used 8192  # tokens

A process of its own, whose memory is nobody else's. Prints both numbers as JSON. Linux only.
"""

import json
import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from lcx.block import Block
from lcx.experiment import Experiment, Train
from lcx.mixers import RWKV7
from lcx.model import LM
from lcx.planning.compiled import compile_step, measure
from lcx.training.loop import fresh_state

MODEL = LM(width=64, pattern=(Block(RWKV7()),), repeats=2, remat="block")


def process(name: str) -> int:
    """Bytes: VmRSS, resident now; VmHWM, at most since it was reset."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def main(length: int) -> None:
    experiment = Experiment(model=MODEL, train=Train(length=length, batch=1))
    said = measure(experiment)
    step, _, batch, _ = compile_step(experiment)
    optimizer = experiment.train.optimizer.transform(experiment.train.steps)
    state = jax.jit(partial(fresh_state, experiment, optimizer))(jax.random.key(0))
    batch = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), batch)
    jax.block_until_ready((state, batch))
    Path("/proc/self/clear_refs").write_text("5")  # the most from here on
    before = process("VmRSS")
    jax.block_until_ready(step(state, batch, {}, None))
    print(json.dumps([said.memory - said.arguments, process("VmHWM") - before]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
