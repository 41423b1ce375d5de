"""How many pairs of a key and a value does a mixer keep, and what does it pay to keep them?

placeholder
"""

from lcx.data import MQAR
from lcx.experiment import Experiment, Experiments, Train
from lcx.mixers import GatedConv, LinearAttention, RetNet, SoftmaxAttention
from lcx.model import LM, Block
from lcx.optim import AdamW
from lcx.protocols import Recall

TRAIN = Train(length=256, batch=16, steps=1200, optimizer=AdamW(peak=3e-3, warmup=50))
DATA = MQAR(pairs=(4, 8, 16, 32), vocab=1024)


def model(mixer) -> LM:
    return LM(vocab=1025, width=64, pattern=(Block(GatedConv()), Block(mixer)), repeats=1)


def experiments() -> Experiments:
    mixers = {
        "softmax": SoftmaxAttention(heads=2),
        "linear": LinearAttention(heads=2),
        "retnet": RetNet(heads=2),
    }
    return {
        n: Experiment(
            model=model(m), data=DATA, train=TRAIN, evaluation=Recall((64, 128, 256, 512))
        )
        for n, m in mixers.items()
    }
