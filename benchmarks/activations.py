"""What does each device hold of activations, when a sequence lies on several?

    python benchmarks/activations.py

Compile analysis of a training step on 8 host devices, nothing is run: fp32, two layers of width 64
with remat, 16,384 tokens a device. Of every mixer: megabytes of one device's temporaries with the
sequence on 1, 2, 4 and 8 devices. They should stay as they are (and so fall as 1 / devices where
the sequence is given). Cost: about seven minutes on 2 cores. Name mixers to run only these.
"""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from lcx.block import Block
from lcx.experiment import Experiment, Train
from lcx.mixers import MIXERS, SoftmaxAttention
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.planning.compiled import measure
from lcx.types import Sublayer

TOKENS = 2**14
COUNTS = (1, 2, 4, 8)


def temporaries(mixer: Sublayer, seq: int) -> float:
    """Megabytes."""
    model = LM(width=64, pattern=(Block(mixer),), repeats=2, remat="block")
    train = Train(length=seq * TOKENS, batch=1)
    step = measure(Experiment(model=model, train=train, mesh=Mesh(seq=seq)))
    return (step.memory - step.arguments) / 1e6


def main() -> None:
    mixers = {name: cls() for name, cls in MIXERS.items()}
    mixers["with 2 KV heads"] = SoftmaxAttention(kv_heads=2)
    for name in sys.argv[1:] or mixers:
        taken = [temporaries(mixers[name], count) for count in COUNTS]
        columns = (
            f"seq={count} {size:6.1f} MB ({size / taken[0]:.2f})"
            for count, size in zip(COUNTS, taken, strict=True)
        )
        print(f"{name:18}", *columns, flush=True)


if __name__ == "__main__":
    main()
