"""Which way of reading the past survives a context longer than the training?

Five small models are trained on 512 bytes at a time of Python's standard library, and asked for
the same 64 bytes of unseen files after 64 to 8,192 bytes of context. One of them is then stretched
eight times by position interpolation, as it is and after a short fine-tune (LongChat's recipe).

    lcx compare experiments/quickstart.py

"""

from dataclasses import replace

from lcx.experiment import Experiment, Experiments, Train
from lcx.layers import LayerNorm, RWKVChannelMix
from lcx.mixers import RWKV4, LinearAttention, RetNet, SoftmaxAttention
from lcx.model import LM, Block
from lcx.optim import AdamW
from lcx.positions import Linear, RoPE

TRAIN = Train(length=512, batch=8, steps=400, optimizer=AdamW(peak=3e-3, warmup=40))


def model(mixer) -> LM:
    """Four layers of width 128: about 0.8 M parameters."""
    return LM(width=128, pattern=(Block(mixer),), repeats=4)


def experiments() -> Experiments:
    """The variants, in the order in which the report lists them."""
    softmax = Experiment(model=model(SoftmaxAttention(heads=4)), train=TRAIN)
    rwkv = Block(RWKV4(), channel=RWKVChannelMix(), norm=LayerNorm())
    stretched = model(SoftmaxAttention(heads=4, position=RoPE(scaling=Linear(8))))
    fine_tune = Train(length=4096, batch=1, steps=60, optimizer=AdamW(peak=5e-4, warmup=5))
    return {
        "softmax": softmax,
        "multi_query": replace(softmax, model=model(SoftmaxAttention(heads=4, kv_heads=1))),
        "interpolated": replace(
            softmax, model=stretched, train=replace(TRAIN, steps=0), init_from="softmax"
        ),
        "fine_tuned": replace(softmax, model=stretched, train=fine_tune, init_from="softmax"),
        "linear": replace(softmax, model=model(LinearAttention(heads=4))),
        "retnet": replace(softmax, model=model(RetNet(heads=4))),
        "rwkv4": replace(
            softmax,
            model=LM(
                width=128, pattern=(rwkv,), repeats=4, norm=LayerNorm(), embed_norm=LayerNorm()
            ),
        ),
    }
