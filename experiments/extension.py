"""What does each way of stretching a trained context cost, before and after a short fine-tune?

One model with RoPE is trained on 320 bytes at a time of Python's standard library. Each scheme then
stretches it by 4 (by 16 in `_16x`), as it is, and after 60 steps at 1,280 bytes (30 at 5,120).
Beside it stand models that were trained short with another scheme from the start: ALiBi, xPos, no
positions, learned vectors, and positions drawn at random.

    lcx compare experiments/extension.py

Cost: about 70 minutes on 2 cores, most of it for the six models that are trained from the start
(2.5 million tokens each). The numbers are in `LOG.md`; they, and what is said below, were measured
on other targets than today's.

Expected, and measured: as it is, RoPE is 1.7 times worse at twice its context and 7.5 times at
eight times. Interpolation alone ruins the short contexts, too, and 60 steps do not make that good
again. What keeps fast pairs as they are loses next to nothing at short contexts and holds to about
its factor: YaRN best of the scalings, NTK to less than its factor says. Dynamic YaRN is exact at
short contexts and degrades gently past every factor; Self-Extend does better still, for nothing but
its second pass. A window of 256 over the same weights loses nothing at any length, for it never
looks further. After 60 steps at 1,280 all but interpolation are level to 1,024, RoPE without
scaling nearly so, and only dynamic YaRN stays near beyond; PoSE does as well on rows of 320. After
as many tokens at 5,120 both kinds of YaRN are within an eighth of the base's own perplexity up to
2,048, and at 4,096 within a sixth. ALiBi is level at every length, and xPos worsens by a third at
4,096; both are behind RoPE at short contexts after so little training. Without positions a model
learns slowly, and drifts. Positions at random teach far distances and hardly any near ones: read at
0, 1, 2, ... that model is poor at once, and stays so. Learned vectors are learnt slowly, too; those
that training has not shown are noise, and read between those that it has, they are poor and level.
A flat curve does not say that context is used: none falls after so short a training.
"""

from dataclasses import replace

from lcx.experiment import Experiment, Experiments, Train
from lcx.mixers import SoftmaxAttention
from lcx.model import LM, Block
from lcx.optim import AdamW
from lcx.positions import (
    NTK,
    ALiBi,
    DynamicNTK,
    DynamicYaRN,
    Learned,
    Linear,
    Llama3,
    LongRoPE,
    NoPE,
    PoSE,
    PositionScheme,
    Randomised,
    RoPE,
    Scaling,
    XPos,
    YaRN,
)
from lcx.protocols import SameTargets
from lcx.sparsity import Full, SelfExtend, Sparsity, Window

SHORT, LONG = 320, 1280
CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096)
TRAIN = Train(length=SHORT, batch=8, steps=1000, optimizer=AdamW(peak=2e-3, warmup=50))
FINE_TUNE = Train(length=LONG, batch=2, steps=60, optimizer=AdamW(peak=5e-4, warmup=6))


WHOLE_PAST = Full()


def lm(
    position: PositionScheme, sparsity: Sparsity = WHOLE_PAST, learned: Learned | None = None
) -> LM:
    """Four layers of width 128, with heads of 32 features: 16 rotary pairs."""
    mixer = SoftmaxAttention(heads=4, position=position, sparsity=sparsity)
    return LM(width=128, pattern=(Block(mixer),), repeats=4, positions=learned)


def long_rope(factor: float) -> LongRoPE:
    """Factors by hand where LongRoPE searches: pairs slow down evenly from 1 to the factor."""
    long = tuple(round(factor ** (i / 15), 4) for i in range(16))
    return LongRoPE(short=(1.0,) * 16, long=long, original=SHORT, factor=factor)


def scalings(factor: float) -> dict[str, Scaling]:
    """Every scaling by a fixed factor. Eight turns within 320 tokens are fast ones."""
    return {
        "interpolation": Linear(factor),
        "ntk": NTK(factor),
        "yarn": YaRN(factor, original=SHORT, beta_fast=8.0),
        "llama3": Llama3(factor, original=SHORT),
        "long_rope": long_rope(factor),
    }


def experiments() -> Experiments:
    """The base, what it becomes as it is and fine-tuned, and the models of other schemes."""
    base = Experiment(
        lm(RoPE()), train=TRAIN, evaluation=SameTargets(contexts=CONTEXTS, documents=24)
    )
    zero_shot, tuned = replace(TRAIN, steps=0), FINE_TUNE

    def stretched(model: LM, train: Train) -> Experiment:
        return replace(base, model=model, train=train, init_from="rope")

    def scaled(scaling: Scaling | None) -> LM:
        return lm(RoPE(scaling=scaling))

    dynamic = {
        "dynamic_ntk": DynamicNTK(original=SHORT),
        "dynamic_yarn": DynamicYaRN(original=SHORT, beta_fast=8.0),
    }
    variants = {"rope": base}
    for name, scaling in (scalings(4.0) | dynamic).items():
        variants[name] = stretched(scaled(scaling), zero_shot)
    for name in ("interpolation", "ntk", "yarn"):
        variants[f"{name}_16x"] = stretched(scaled(scalings(16.0)[name]), zero_shot)
    variants["self_extend"] = stretched(lm(RoPE(), SelfExtend(128, group=24)), zero_shot)
    variants["window_of_256"] = stretched(lm(RoPE(), Window(256)), zero_shot)
    for name, scaling in ({"rope": None} | scalings(4.0) | dynamic).items():
        variants[f"{name}_tuned"] = stretched(scaled(scaling), tuned)
    far = replace(FINE_TUNE, length=16 * SHORT, batch=1, steps=30)  # as many tokens
    for name in ("interpolation", "ntk", "yarn"):
        variants[f"{name}_16x_tuned"] = stretched(scaled(scalings(16.0)[name]), far)
    variants["dynamic_yarn_16x_tuned"] = stretched(scaled(dynamic["dynamic_yarn"]), far)
    skipping = replace(TRAIN, steps=60, optimizer=tuned.optimizer, positions=PoSE(longest=LONG))
    variants["yarn_pose_tuned"] = stretched(scaled(scalings(4.0)["yarn"]), skipping)

    variants["alibi"] = replace(base, model=lm(ALiBi()))
    variants["xpos"] = replace(base, model=lm(XPos()))
    variants["nope"] = replace(base, model=lm(NoPE()))
    spread = replace(TRAIN, positions=Randomised(longest=4 * LONG))
    variants["rope_randomised"] = replace(base, train=spread)
    # of vectors for 4,160 tokens training shows 320; interpolated, all of a text lies among these
    learned = lm(NoPE(), learned=Learned(SHORT * 13))
    between = lm(NoPE(), learned=Learned(SHORT * 13, factor=13.0))
    variants["learned"] = replace(base, model=learned)
    variants["learned_interpolated"] = replace(
        base, model=between, train=zero_shot, init_from="learned"
    )
    return variants
