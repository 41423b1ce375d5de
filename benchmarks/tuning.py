"""What does tuning few parameters spare, beside training all of them?

The step of `lcx train`, fp32, all cores, a model of width 256 as in `benchmarks.train_step`: the
ways take turns, so that a noisy machine disturbs all, and the fastest step of each counts. Then
bytes: of what the optimizer keeps, of what a checkpoint holds, of temporaries.

    python -m benchmarks.tuning
    python -m benchmarks.tuning "LoRA(8), attention" HeadTuning

Methods that stand before documents do so for both documents of each row.
"""

import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from benchmarks.turns import fastest
from lcx.adapters import (
    Adapter,
    BiasTuning,
    HeadTuning,
    InitialState,
    LoRA,
    PrefixTuning,
    PromptTuning,
    Tuning,
)
from lcx.block import Block
from lcx.command.start import huge_pages
from lcx.experiment import Experiment
from lcx.layers import LayerNorm, SwiGLU
from lcx.mixers import RWKV7, GatedDeltaNet, SoftmaxAttention
from lcx.model import LM
from lcx.optim import AdamW
from lcx.training.loop import fresh_state, held, make_step
from lcx.types import Batch, Sublayer, tree_bytes

WIDTH, HIDDEN, HEADS, LAYERS, VOCAB, LENGTH, BATCH = 256, 704, 4, 4, 257, 512, 8
ATTENTION = ("q", "k", "v", "out")
ROUNDS = 6
MIXERS: dict[str, Sublayer] = {
    "softmax": SoftmaxAttention(heads=HEADS),
    "gated_delta_net": GatedDeltaNet(heads=HEADS),
    "rwkv7": RWKV7(heads=HEADS),
}
ANY = {"all": None, "PromptTuning(20)": PromptTuning(20), "InitialState": InitialState()}
WAYS: dict[str, dict[str, Tuning | None]] = {
    "softmax": {
        "all": None,
        "LoRA(8), attention": LoRA(8, of=ATTENTION),
        "LoRA(8), all projections": LoRA(8, of=("mixer", "channel")),
        "LongLoRA(8)": LoRA(8, of=ATTENTION, norms=True, embeddings=True),
        "Adapter(64)": Adapter(),
        "PromptTuning(20)": PromptTuning(20),
        "PrefixTuning(20)": PrefixTuning(20),
        "BiasTuning": BiasTuning(),
        "HeadTuning": HeadTuning(),
    },
    "gated_delta_net": ANY | {"LoRA(8), mixer": LoRA(8, of=("q", "k", "v", "mixer.gate", "out"))},
    "rwkv7": ANY | {"LoRA(8), mixer": LoRA(8, of=("receptance", "key", "value", "out"))},
}


class Way:
    """One way to train, with what it takes."""

    def __init__(self, mixer: Sublayer, tune: Tuning | None, batch: Batch):
        block = Block(mixer, SwiGLU(hidden=HIDDEN), LayerNorm())
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
    text = np.random.default_rng(0).integers(0, 256, (BATCH, LENGTH + 1)).astype(np.int32)
    half = LENGTH // 2
    index = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH))
    documents = Batch(text[:, :-1], index % half, 1 + index // half, targets=text[:, 1:])
    for mixer, ways in WAYS.items():
        asked = {n: tune for n, tune in ways.items() if n == "all" or n in names or not names}
        if len(asked) > 1:
            print(f"\n{mixer}\n")
            table({n: Way(MIXERS[mixer], tune, documents) for n, tune in asked.items()})


def table(ways: dict[str, Way]) -> None:
    """Ways in turns, and what each takes."""
    seconds = fastest(*(way.step for way in ways.values()), rounds=ROUNDS, each=1)
    times = dict(zip(ways, seconds, strict=True))
    print("| trained | numbers | ms | of all | moments | checkpoint | temporaries |")
    print("|---|---|---|---|---|---|---|")
    for name, way in ways.items():
        numbers = sum(leaf.size for leaf in jax.tree.leaves(way.state.params))
        temporaries = way.compiled.memory_analysis().temp_size_in_bytes
        share = times[name] / times["all"]
        sizes = (tree_bytes(way.state.optimizer), tree_bytes(way.state), temporaries)
        kept = " | ".join(f"{size / 2**20:.2f} MiB" for size in sizes)
        print(f"| {name} | {numbers:,} | {1e3 * times[name]:.0f} | {share:.2f} | {kept} |")


if __name__ == "__main__":
    huge_pages()
    main(*sys.argv[1:])
