"""How many pairs of a key and a value does a mixer keep, and what does it pay to keep them?

Two layers of width 64 learn multi-query associative recall with 1 to 16 pairs of 32 keys and 32
values, and are asked with up to 32 pairs, which take 128 tokens. Who knows which values there are,
and not whose they are, and leaves out those that were asked for, is right H(n) / n of the time: 52,
34, 21 and 13% with 4, 8, 16 and 32 pairs.

    lcx compare experiments/recall.py

Cost: 11 minutes on 2 cores, 3 million tokens a model. The numbers are in `LOG.md`, of one training
each.

Expected, and measured: softmax attention recalls everything, at twice the pairs of its training,
too, and its state grows with them. A window recalls what lies in it, and blocks chosen by their
mean key part of the rest. Of the fixed states, DeltaNet with one head, a 64 x 64 matrix, recalls as
much as softmax attention, and RWKV-7, with two of 32 x 32, 94% at twice its training. DeltaNet with
eight heads of 8 x 8 stays at the guess. So do, after 1,500 steps, linear attention, RetNet and
Mamba-2, whatever their state, but for 8 pairs, of which RetNet and the larger Mamba-2 keep 45 to
48%: they have learnt which values are there, and not which belongs to which key. What they could
keep is not shown here. Short examples bring the binding first: with 2, 4, 8 and 16 pairs RWKV-7
stayed at the guess for 3,000 steps.
"""

from lcx import (
    LM,
    MQAR,
    RWKV7,
    Block,
    DeltaNet,
    Experiment,
    Experiments,
    GatedConv,
    LinearAttention,
    Mamba2,
    Muon,
    Recall,
    RetNet,
    SoftmaxAttention,
    TopBlocks,
    Train,
    Window,
)
from lcx.types import Sublayer

DATA = MQAR(pairs=(1, 2, 3, 4, 6, 8, 12, 16), vocab=64)
OPTIMIZER = Muon(peak=1e-2, schedule="wsd", final=0.0)
TRAIN = Train(length=128, batch=16, steps=1500, optimizer=OPTIMIZER)
EVALUATION = Recall((16, 32, 64, 128), documents=64)


def variant(mixer: Sublayer) -> Experiment:
    """Two layers of width 64: a convolution, which ties a value to its key, and the mixer."""
    model = LM(vocab=65, width=64, pattern=(Block(GatedConv()), Block(mixer)), repeats=1)
    return Experiment(model, DATA, TRAIN, EVALUATION)


def experiments() -> Experiments:
    """The variants, in the order in which the report lists them."""
    mixers = {
        "softmax": SoftmaxAttention(heads=2),
        "window": SoftmaxAttention(heads=2, sparsity=Window(32)),
        "top_blocks": SoftmaxAttention(heads=2, sparsity=TopBlocks(8, top=2)),
        "linear": LinearAttention(heads=2),
        "linear_softmax_features": LinearAttention(heads=2, feature_map="softmax"),
        "retnet": RetNet(heads=2, expand=1),
        "mamba2_small": Mamba2(state=8, head_width=32),
        "mamba2": Mamba2(state=64, head_width=32),
        "delta_net_small": DeltaNet(heads=8),
        "delta_net": DeltaNet(heads=1),
        "rwkv7": RWKV7(heads=2),
    }
    return {name: variant(mixer) for name, mixer in mixers.items()}
