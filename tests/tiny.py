"""The smallest experiment that is whole, as an experiment file: used by several tests."""

import os
from dataclasses import replace

from lcx.block import Block
from lcx.data import Data, TextFiles
from lcx.experiment import Experiment, Experiments, Train
from lcx.layers import SwiGLU
from lcx.mixers import RetNet, SoftmaxAttention
from lcx.model import LM
from lcx.optim import AdamW
from lcx.positions import PositionInterpolation, RoPE
from lcx.protocols import SameTargets


def model(mixer) -> LM:
    return LM(width=16, pattern=(Block(mixer, SwiGLU(hidden=32)),), repeats=2)


def tiny(glob: str) -> Experiment:
    return Experiment(
        model=model(SoftmaxAttention(heads=2)),
        data=Data(source=TextFiles(glob), validation=0.2, test=0.3),
        train=Train(length=48, batch=4, steps=12, checkpoint_every=4, optimizer=AdamW(warmup=1)),
        evaluation=SameTargets(contexts=(16, 64, 200), span=32),
    )


def experiments() -> Experiments:
    """Read by the command-line tests, which say in the environment where the texts are."""
    softmax = tiny(os.environ["TINY_TEXTS"])
    stretched = model(SoftmaxAttention(heads=2, position=RoPE(scaling=PositionInterpolation(4))))
    return {
        "softmax": softmax,
        "stretched": replace(
            softmax,
            model=stretched,
            train=replace(softmax.train, length=192, batch=1, steps=3),
            init_from="softmax",
        ),
        "zero_shot": replace(
            softmax, model=stretched, train=replace(softmax.train, steps=0), init_from="softmax"
        ),
        "retnet": replace(softmax, model=model(RetNet(heads=2))),
    }
