"""LongLoRA: how many parameters must be trained to take a model to longer texts?

A base that was trained on 128 tokens is taken to 4 and to 8 times that: its positions are condensed
to those it knows (position interpolation), and it reads on for 300 steps on long documents. With
all of its parameters trained (`all`); with low-rank updates of attention alone (`rank2`, `rank8`,
`rank32`); and with the norms and the embedding besides, at rank 8 (`longlora`): the paper finds
that these count and the rank does not (Chen et al. 2023, arXiv:2309.12307, section 3.3, table 2).
Last, shifted sparse attention in training (section 3.2), in which half of the heads sees groups of
a quarter of the length, and the other half the same shifted: `shifted` as it was trained, and
`shifted_dense` with attention to everything, for which the updates are merged.

    lcx compare experiments/longlora.py
    lcx report runs/longlora --baseline all_x8

Cost: about 8 minutes on 2 cores. The numbers are in `LOG.md`.

Expected, and measured; of one training, but for the first:
- At 8 times the length, norms and the embedding beside rank 8 are worth as much as four times the
  rank: 17.2 at 1,024 tokens, and 17.5 with rank 32, where rank 8 alone has 21.3 and all parameters
  16.1. So it is in two seeds more, whose bases are worse by far more than these differ. Rank
  counts, too, at this size: rank 2 ends at 25.3. The paper has ranks of 8 to 256 all alike.
- Past its new length each is about as lost as the base was past its own.
- Shifted sparse attention does not carry over. Read as trained, it gains nothing from 256 tokens
  on, where its groups end; with attention to everything it is worse at 1,024 tokens (35.1) than at
  256 (18.7). The paper's models are ten thousand times as large and began from thousands of
  tokens; which of it matters is not shown here.
"""

from dataclasses import replace

from lcx import (
    BPE,
    LM,
    AdamW,
    Block,
    Data,
    Experiment,
    Experiments,
    LoRA,
    Muon,
    PositionInterpolation,
    PythonCorpus,
    RMSNorm,
    RoPE,
    SameTargets,
    ShiftedGroups,
    SoftmaxAttention,
    Train,
)

SHORT = 128
ATTENTION = ("q", "k", "v", "out")
FULL, FEW = AdamW(peak=2e-3, warmup=20), AdamW(peak=5e-3, warmup=20)
"""Few parameters take larger steps."""


def model(ratio: int = 1, sparsity: ShiftedGroups | None = None) -> LM:
    """Three layers of width 128, for texts of so many times the base's length."""
    scaling = PositionInterpolation(float(ratio)) if ratio > 1 else None
    mixer = SoftmaxAttention(heads=4, qk_norm=RMSNorm(), position=RoPE(scaling=scaling))
    mixer = mixer if sparsity is None else replace(mixer, sparsity=sparsity)
    return LM(vocab=1024, width=128, pattern=(Block(mixer),), repeats=3, tied=True)


def experiments() -> Experiments:
    """The base, and what is made of it."""
    data = Data(PythonCorpus(), BPE(1024))
    train = Train(SHORT, 8, 1600, Muon(peak=1e-2, schedule="wsd", final=0.0))
    base = Experiment(model(), data, train, SameTargets((128, 256, 512, 1024), documents=24))
    after = replace(base, data=replace(data, at_least=1024), init_from="base")
    ranks = {f"rank{rank}": LoRA(rank, of=ATTENTION) for rank in (2, 8, 32)}
    longlora = LoRA(8, of=ATTENTION, norms=True, embeddings=True)
    ways: dict[str, LoRA | None] = {"all": None, **ranks, "longlora": longlora}
    found: dict[str, Experiment] = {"base": base}
    for ratio in (4, 8):
        for name, tune in ways.items():
            further = Train(ratio * SHORT, 8 // ratio, 300, FEW if tune else FULL)
            long = replace(after, model=model(ratio), train=further, tune=tune)
            found[f"{name}_x{ratio}"] = long
    grouped = model(8, ShiftedGroups(2 * SHORT))
    found["shifted"] = replace(found["longlora_x8"], model=grouped)
    dense = replace(base, model=model(8), train=replace(train, steps=0), init_from="shifted")
    return found | {"shifted_dense": dense}
