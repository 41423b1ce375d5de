"""How many pairs of a key and a value does a mixer keep, and what does it pay to keep them?

Two layers of width 64 learn multi-query associative recall with 2 to 16 pairs of 32 keys and 32
values, and are asked with up to 32 pairs, which take 128 tokens. Who knows which values there are,
and not whose they are, and leaves out those that were asked for, is right H(n) / n of the time: 52,
34, 21 and 13% with 4, 8, 16 and 32 pairs.

    lcx compare experiments/recall.py

Cost: 36 minutes of processor time, 6 million tokens a model. The numbers are in `LOG.md`, of one
training each.

Expected, and measured: softmax attention recalls everything, at twice the pairs of its training,
too, and its state grows with them. A window recalls what lies in it, and blocks chosen by their
mean key part of the rest. Of the fixed states, DeltaNet with one head, a 64 x 64 matrix, recalls as
much as softmax attention; with eight heads of 8 x 8, an eighth of the numbers, it stays at the
guess. So do, after 3,000 steps, linear attention and RWKV-7; RetNet and Mamba-2 are above it with
up to 8 pairs alone. They have learnt which values are there, and not which belongs to which key:
what they could keep is not shown here. A rate of 0.03 in place of 0.01 does not help within 800
steps.
"""

from lcx.data import MQAR
from lcx.experiment import Experiment, Experiments, Train
from lcx.mixers import (
    RWKV7,
    DeltaNet,
    GatedConv,
    LinearAttention,
    Mamba2,
    RetNet,
    SoftmaxAttention,
)
from lcx.model import LM, Block
from lcx.optim import Muon
from lcx.protocols import Recall
from lcx.sparsity import TopBlocks, Window
from lcx.types import Half

DATA = MQAR(pairs=(2, 4, 8, 16), vocab=64)
OPTIMIZER = Muon(peak=1e-2, schedule="wsd", final=0.0)
TRAIN = Train(length=128, batch=16, steps=3000, optimizer=OPTIMIZER)
EVALUATION = Recall((16, 32, 64, 128), documents=64)


def variant(mixer: Half) -> Experiment:
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
