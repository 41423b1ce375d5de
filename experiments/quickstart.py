"""What does a small model gain from its context, and what is left of that beyond its training?

Models of 0.7 million parameters are trained on 128 tokens at a time of Python's standard library,
and asked for the same spans of unseen files from 16 to 1,024 tokens of context. One of them is then
read through a window, and stretched four times by YaRN, as it is and after a short fine-tune.

    lcx compare experiments/quickstart.py

Cost: about 9 minutes on 2 cores, 1.6 million tokens a model.

Expected (`pytest -m quickstart` checks a run):
- softmax attention with RoPE gains 8% or more by reading 128 tokens in place of 16; at four times
  128 no gain is left, and at eight times it is worse than after 16 tokens. A window over the same
  weights keeps the gain, and gains no more;
- YaRN keeps most of it to four times the length, and a fine-tune there is the best of all;
- linear attention worsens with length, and RWKV-4 holds what it has.
Much of what softmax attention gains comes at once, where it learns to find what stands earlier in a
text and to copy what followed. Short rows bring that about sooner: after about 1,000 steps with
seeds 0 and 1, which gain 41 and 40% on Python 3.11's library, and not within these 1,600 with seed
2, which gains 21% and nothing by the fine-tune.
"""

from dataclasses import replace

from lcx import (
    BPE,
    LM,
    RWKV4,
    Block,
    Data,
    Experiment,
    Experiments,
    LayerNorm,
    LinearAttention,
    Muon,
    RMSNorm,
    RoPE,
    RWKVChannelMix,
    SameTargets,
    SoftmaxAttention,
    Train,
    Window,
    YaRN,
)

DATA = Data(tokenizer=BPE(1024))
OPTIMIZER = Muon(peak=1e-2, schedule="wsd", final=0.0)
TRAIN = Train(length=128, batch=8, steps=1600, optimizer=OPTIMIZER, evaluate_every=800)
FINE_TUNE = Train(length=512, batch=2, steps=150, optimizer=replace(OPTIMIZER, peak=3e-3))
EVALUATION = SameTargets((16, 32, 64, 128, 256, 512, 1024), documents=16)
YARN = RoPE(scaling=YaRN(4, original=128))


def attention(**settings) -> SoftmaxAttention:
    """Four heads; queries and keys are normalised, which Muon's large steps need."""
    return SoftmaxAttention(heads=4, qk_norm=RMSNorm(), **settings)


def model(*blocks: Block, **settings) -> LM:
    """Three layers of width 128."""
    return LM(vocab=1024, width=128, pattern=blocks, repeats=3, tied=True, **settings)


def experiments() -> Experiments:
    """The variants, in the order in which the report lists them."""
    softmax = Experiment(model(Block(attention())), DATA, TRAIN, EVALUATION)

    def variant(block: Block, **settings) -> Experiment:
        return replace(softmax, model=model(block, **settings))

    def from_softmax(train: Train, **settings) -> Experiment:
        other = variant(Block(attention(**settings)))
        return replace(other, train=train, init_from="softmax")

    as_it_is = replace(TRAIN, steps=0)
    rwkv = Block(RWKV4(), channel=RWKVChannelMix(), norm=LayerNorm())
    return {
        "softmax": softmax,
        "window": from_softmax(as_it_is, sparsity=Window(128)),
        "yarn": from_softmax(as_it_is, position=YARN),
        "fine_tuned": from_softmax(FINE_TUNE, position=YARN),
        "linear": variant(Block(LinearAttention(heads=4))),
        "rwkv4": variant(rwkv, norm=LayerNorm(), embed_norm=LayerNorm()),
    }
