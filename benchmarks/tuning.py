"""What does tuning few parameters spare, beside training all of them?

The step of `lcx train`, fp32, all cores, a model of width 256 as in `benchmarks.train_step`: the
ways take turns, so that a noisy machine disturbs all, and the fastest step of each counts. Then
bytes: of what the optimizer keeps, of what a checkpoint holds, of temporaries.

    python -m benchmarks.tuning
    python -m benchmarks.tuning "LoRA(8), attention" HeadTuning
"""

import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from benchmarks.turns import fastest
from lcx.adapters import Adapter, BiasTuning, HeadTuning, LoRA, Tuning
from lcx.block import Block
from lcx.command.start import huge_pages
from lcx.experiment import Experiment
from lcx.layers import LayerNorm, SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.optim import AdamW
from lcx.training.loop import fresh_state, held, make_step
from lcx.types import Batch, tree_bytes

WIDTH, HIDDEN, HEADS, LAYERS, VOCAB, LENGTH, BATCH = 256, 704, 4, 4, 257, 512, 8
ATTENTION = ("q", "k", "v", "out")
ROUNDS = 6
WAYS: dict[str, Tuning | None] = {
    "all": None,
    "LoRA(8), attention": LoRA(8, of=ATTENTION),
    "LoRA(8), all projections": LoRA(8, of=("mixer", "channel")),
    "LongLoRA(8)": LoRA(8, of=ATTENTION, norms=True, embeddings=True),
    "Adapter(64)": Adapter(),
    "BiasTuning": BiasTuning(),
    "HeadTuning": HeadTuning(),
}


class Way:
    """One way to train, with what it takes."""

    def __init__(self, tune: Tuning | None, batch: Batch):
        block = Block(SoftmaxAttention(heads=HEADS), SwiGLU(hidden=HIDDEN), LayerNorm())
        model = LM(VOCAB, WIDTH, (block,), LAYERS, tied=False)
        experiment = replace(Experiment(), model=model, tune=tune)
        optimizer = AdamW(warmup=0, schedule="constant").transform(1000)
        base = jax.jit(model.init)(jax.random.key(0))
        fresh = jax.jit(partial(fresh_state, experiment, optimizer))
        self.state, self.frozen = fresh(jax.random.key(0), base), held(experiment, base)
        self.batch = batch
        step = jax.jit(make_step(experiment, optimizer), donate_argnums=0)
        self.compiled = step.lower(self.state, batch, self.frozen).compile()

    def step(self) -> float:
        self.state, metrics = self.compiled(self.state, self.batch, self.frozen)
        return float(jax.block_until_ready(metrics["loss"]))


def main(*names: str) -> None:
    asked = {
        name: tune for name, tune in WAYS.items() if name == "all" or name in names or not names
    }
    text = np.random.default_rng(0).integers(0, 256, (BATCH, LENGTH + 1)).astype(np.int32)
    place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH))
    batch = Batch(text[:, :-1], place, np.ones_like(place), targets=text[:, 1:])
    ways = {name: Way(tune, batch) for name, tune in asked.items()}
    seconds = fastest(*(way.step for way in ways.values()), rounds=ROUNDS, each=1)
    times = dict(zip(ways, seconds, strict=True))
    print("| trained | numbers | ms | of all | moments | checkpoint  | temporaries |")
    print("|---|---|---|---|---|---|---|")
    for name, way in ways.items():
        numbers = sum(leaf.size for leaf in jax.tree.leaves(way.state.params))
        temporaries = way.compiled.memory_analysis().temp_size_in_bytes
        share = times[name] / times["all"]
        sizes = (tree_bytes(way.state.optimizer), tree_bytes(way.state), temporaries)
        kept = " | ".join(f"{size / 2**20:.2f} MiB" for size in sizes)
        ms = 1e3 * times[name]
        print(f"| {name} | {numbers:,} | {ms:.0f} | {share:.2f} | {kept} |")


if __name__ == "__main__":
    huge_pages()
    main(*sys.argv[1:])
