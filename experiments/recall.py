"""How many pairs of a key and a value does a mixer keep, and what does it pay to keep them?

Two layers of width 64 learn multi-query associative recall with 2 to 16 pairs of 32 keys and 32
values, and are asked with up to 32 pairs, which take 128 tokens. Guessing is right 3% of the time.

    lcx compare experiments/recall.py

Cost: about 15 minutes on 2 cores, 2 million tokens a model. The numbers are in `LOG.md`.

Expected, and measured: softmax attention recalls everything up to the length of its training, and
its state grows with it; a window recalls what lies in it, and blocks chosen by their mean key part
of the rest. Of the fixed states, DeltaNet with one head, a 64 x 64 matrix, recalls as much as
softmax attention, and more beyond the training; with eight heads of 8 x 8, an eighth of the
numbers, it recalls half of four pairs. Recurrences that only add and decay learn this more slowly:
after 1,000 steps linear attention, RetNet, Mamba-2 and RWKV-7 have hardly begun, whatever the size
of their state. What they could keep is not shown here.
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
