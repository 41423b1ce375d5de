"""Do the architectures of published families gain differently from context, at one small size?

Each is a family as transformers has it (`lcx.huggingface`), three to six layers of width 128,
trained alike for a few hundred steps on the Python standard library. None was tuned for it, and
they differ in parameters: this is less a ranking than a set of small models to try things on. Each
can be handed on:

    lcx compare experiments/families.py
    lcx export runs/families/gpt_neox --to models/gpt_neox
    PUBLISHED='models/*' PUBLISHED_LONGEST=1024 lcx evaluate experiments/published.py

Cost: 10 minutes of processor time. The numbers are in `LOG.md`.

Measured, of one training: none gains much by context after so few steps. Past the 128 tokens of
training those with RoPE and with learned vectors worsen; ALiBi, Mamba-2 and RWKV stay level.
"""

from dataclasses import replace

from lcx import (
    BPE,
    LM,
    MLP,
    RWKV4,
    ALiBi,
    Block,
    Data,
    Experiment,
    Experiments,
    LayerNorm,
    Learned,
    Mamba2,
    Muon,
    NoPE,
    ParallelBlock,
    PythonCorpus,
    RMSNorm,
    RoPE,
    RWKVChannelMix,
    SameTargets,
    SoftmaxAttention,
    SwiGLU,
    Train,
)

ALL = ("q", "k", "v", "out")
LENGTH = 128
NORM = LayerNorm()


def families() -> dict[str, LM]:
    """One architecture a family."""
    attention = SoftmaxAttention(heads=4)
    biased = replace(attention, biases=ALL)
    small = LM(width=128, repeats=3)

    def lm(block: Block, **around) -> LM:
        return replace(small, pattern=(block,), norm=block.norm, **around)

    return {
        "llama": lm(Block(replace(attention, kv_heads=2), SwiGLU(352))),
        "qwen3": lm(Block(replace(attention, qk_norm=RMSNorm()), SwiGLU(352))),
        "gpt2": lm(
            Block(replace(biased, position=NoPE()), MLP(512, "gelu_tanh", bias=True), NORM),
            positions=Learned(1024),
        ),
        "gpt_neox": lm(
            ParallelBlock(
                replace(biased, position=RoPE(fraction=0.25)), MLP(512, "gelu", bias=True), NORM
            ),
            tied=False,
        ),
        "falcon": lm(
            ParallelBlock(replace(attention, kv_heads=1), MLP(512), NORM, one_norm=True),
        ),
        "bloom": lm(
            Block(replace(biased, position=ALiBi()), MLP(512, "gelu_tanh", bias=True), NORM),
            embed_norm=NORM,
        ),
        "mamba2": lm(Block(Mamba2(state=64, head_width=32), None, RMSNorm(1e-5)), repeats=6),
        "rwkv": lm(Block(RWKV4(), RWKVChannelMix(512), NORM), embed_norm=NORM, tied=False),
    }


def experiments() -> Experiments:
    """Each family, trained alike."""
    data = Data(PythonCorpus(), BPE(1024))
    optimizer = Muon(peak=1e-2, schedule="wsd", final=0.0)
    train = Train(length=LENGTH, batch=8, steps=300, optimizer=optimizer)
    evaluation = SameTargets((16, 32, 64, 128, 256, 512), documents=24)
    return {name: Experiment(model, data, train, evaluation) for name, model in families().items()}
