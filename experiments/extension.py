"""What does each way of stretching a trained context cost, before and after a short fine-tune?

One model with RoPE is trained on 128 tokens at a time of Python's standard library. Each scheme
then stretches it by 4 (by 16 in `_16x`), as it is, and after a short fine-tune at 512 tokens (at
2,048 in `_16x_tuned`), a tenth of the base's training. Beside it stand models that were trained
short with another scheme from the start: ALiBi, xPos, no positions, learned vectors, and positions
drawn at random.

    lcx compare experiments/extension.py

Cost: 41 minutes of processor time, half of it for the six models that are trained from the start
(1.6 million tokens each). The numbers are in `LOG.md`, of one training each; the base has 10.3 at
its 128 tokens.

Expected, and measured: as it is, RoPE is 1.7 times worse at twice its context and 5 times at
sixteen times. Interpolation alone ruins the short contexts, too: 30.6 at 128 tokens, and 13.6 after
the fine-tune. What keeps fast pairs as they are loses little at short contexts and holds to about
its factor; NTK to less than its factor says. Of what costs no training, Self-Extend (9.6) and
dynamic YaRN (9.8) gain by reading on to 256 tokens, are the base itself at short contexts, and
worsen slowly after. A window of 128 over the same weights loses nothing at any length and gains
nothing.

After the fine-tune RoPE without scaling is nearly as good as the scalings up to the new length
(10.0 at 512 tokens, they 9.2 to 9.5, interpolation 13.0). All have lost at the shortest contexts:
20 to 24 at 16 tokens in place of 18. Beyond the new length YaRN and Llama 3 break at once; dynamic
YaRN goes on (9.1 at 1,024, 9.9 at 2,048). Tuned at 2,048 both kinds of YaRN gain to the end, to
9.05; interpolation stays poor. PoSE, on rows of 128 tokens, loses nothing at short contexts and is
near YaRN's own fine-tune at 256 and 512.

Of the schemes from the start, ALiBi gains to 256 tokens and is level from there, behind RoPE at 128
(12.2); xPos worsens slowly, to 16.7 at 2,048. Without positions a model learns slowly, gains to 64
tokens and drifts from there. Positions at random teach far distances and hardly any near ones: poor
at once (27), and 36 at 2,048. Learned vectors are learnt slowly (15.6 at 128) and are noise beyond;
read between, they are poor, 32 to 41.
"""

from dataclasses import replace

from lcx import (
    BPE,
    LM,
    NTK,
    ALiBi,
    Block,
    Data,
    DynamicNTK,
    DynamicYaRN,
    Experiment,
    Experiments,
    Full,
    Learned,
    Llama3,
    LongRoPE,
    Muon,
    NoPE,
    PoSE,
    PositionInterpolation,
    Randomised,
    RMSNorm,
    RoPE,
    SameTargets,
    SelfExtend,
    SoftmaxAttention,
    Train,
    Window,
    XPos,
    YaRN,
)
from lcx.positions import PositionScheme, Scaling
from lcx.sparsity import Sparsity

SHORT, LONG = 128, 512
CONTEXTS = (16, 32, 64, 128, 256, 512, 1024, 2048)
OPTIMIZER = Muon(peak=1e-2, schedule="wsd", final=0.0)
TRAIN = Train(length=SHORT, batch=8, steps=1600, optimizer=OPTIMIZER)
FINE_TUNE = Train(length=LONG, batch=2, steps=150, optimizer=replace(OPTIMIZER, peak=3e-3))


WHOLE_PAST = Full()


def lm(
    position: PositionScheme, sparsity: Sparsity = WHOLE_PAST, learned: Learned | None = None
) -> LM:
    """Three layers of width 128, with heads of 32 features: 16 rotary pairs."""
    mixer = SoftmaxAttention(heads=4, qk_norm=RMSNorm(), position=position, sparsity=sparsity)
    return LM(vocab=1024, width=128, pattern=(Block(mixer),), repeats=3, positions=learned)


def long_rope(factor: float) -> LongRoPE:
    """Factors by hand where LongRoPE searches: pairs slow down evenly from 1 to the factor."""
    long = tuple(round(factor ** (i / 15), 4) for i in range(16))
    return LongRoPE(short=(1.0,) * 16, long=long, original=SHORT, factor=factor)


def scalings(factor: float) -> dict[str, Scaling]:
    """Every scaling by a fixed factor. Eight turns within 128 tokens are fast ones."""
    return {
        "interpolation": PositionInterpolation(factor),
        "ntk": NTK(factor),
        "yarn": YaRN(factor, original=SHORT, beta_fast=8.0),
        "llama3": Llama3(factor, original=SHORT),
        "long_rope": long_rope(factor),
    }


def experiments() -> Experiments:
    """The base, what it becomes as it is and fine-tuned, and the models of other schemes."""
    evaluation = SameTargets(contexts=CONTEXTS, documents=24)
    base = Experiment(lm(RoPE()), Data(tokenizer=BPE(1024)), TRAIN, evaluation)
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
    variants["self_extend"] = stretched(lm(RoPE(), SelfExtend(64, group=32)), zero_shot)
    variants["window_of_128"] = stretched(lm(RoPE(), Window(SHORT)), zero_shot)
    for name, scaling in ({"rope": None} | scalings(4.0) | dynamic).items():
        variants[f"{name}_tuned"] = stretched(scaled(scaling), tuned)
    far = replace(FINE_TUNE, length=16 * SHORT, batch=1, steps=75)  # as many tokens
    for name in ("interpolation", "ntk", "yarn"):
        variants[f"{name}_16x_tuned"] = stretched(scaled(scalings(16.0)[name]), far)
    variants["dynamic_yarn_16x_tuned"] = stretched(scaled(dynamic["dynamic_yarn"]), far)
    skipping = replace(TRAIN, steps=150, optimizer=tuned.optimizer, positions=PoSE(longest=LONG))
    variants["yarn_pose_tuned"] = stretched(scaled(scalings(4.0)["yarn"]), skipping)

    variants["alibi"] = replace(base, model=lm(ALiBi()))
    variants["xpos"] = replace(base, model=lm(XPos()))
    variants["nope"] = replace(base, model=lm(NoPE()))
    spread = replace(TRAIN, positions=Randomised(longest=4 * LONG))
    variants["rope_randomised"] = replace(base, train=spread)
    # of vectors for 2,176 tokens training shows 128; interpolated, all of a text lies among these
    learned = lm(NoPE(), learned=Learned(SHORT * 17))
    between = lm(NoPE(), learned=Learned(SHORT * 17, factor=17.0))
    variants["learned"] = replace(base, model=learned)
    variants["learned_interpolated"] = replace(
        base, model=between, train=zero_shot, init_from="learned"
    )
    return variants
