"""Which way of reading the past survives a context longer than the training?

Four small models are trained on 512 bytes at a time of Python's standard library, and asked for
the same 64 bytes of unseen files after 64 to 8,192 bytes of context. One of them is then stretched
eight times by position interpolation, as it is and after a short fine-tune (LongChat's recipe).

    lcx compare experiments/quickstart.py

Cost: about 8 minutes on 2 cores, 0.9 million tokens a model.

Expected: softmax attention with RoPE, multi-query or not, is level up to 512 bytes and worsens at
every doubling after. Interpolated by 8 with no fine-tune it is worse everywhere and level up to
4,096; 40 steps at 4,096 win back half of the loss and keep the curve level. Of the recurrences,
RWKV-4 is level to the end, and linear attention, which forgets nothing, drifts up by a quarter.
After so little training no curve falls yet: what a model gains from context is learnt late, what
it loses beyond its training length shows at once. RWKV-4's lead is a head start, by its token
shift; it says little about longer training.
"""

from dataclasses import replace

from lcx.experiment import Experiment, Experiments, Train
from lcx.layers import LayerNorm, RWKVChannelMix
from lcx.mixers import RWKV4, LinearAttention, SoftmaxAttention
from lcx.model import LM, Block
from lcx.optim import AdamW
from lcx.positions import Linear, RoPE
from lcx.protocols import SameTargets

TRAIN = Train(length=512, batch=4, steps=450, optimizer=AdamW(peak=3e-3, warmup=40))


def model(mixer) -> LM:
    """Three layers of width 128: about 0.6 M parameters."""
    return LM(width=128, pattern=(Block(mixer),), repeats=3)


def experiments() -> Experiments:
    """The variants, in the order in which the report lists them."""
    softmax = Experiment(
        model=model(SoftmaxAttention(heads=4)), train=TRAIN, evaluation=SameTargets(documents=16)
    )
    rwkv = Block(RWKV4(), channel=RWKVChannelMix(), norm=LayerNorm())
    stretched = model(SoftmaxAttention(heads=4, position=RoPE(scaling=Linear(8))))
    fine_tune = Train(length=4096, batch=1, steps=40, optimizer=AdamW(peak=1e-3, warmup=4))
    return {
        "softmax": softmax,
        "multi_query": replace(softmax, model=model(SoftmaxAttention(heads=4, kv_heads=1))),
        "interpolated": replace(
            softmax, model=stretched, train=replace(TRAIN, steps=0), init_from="softmax"
        ),
        "fine_tuned": replace(softmax, model=stretched, train=fine_tune, init_from="softmax"),
        "linear": replace(softmax, model=model(LinearAttention(heads=4))),
        "rwkv4": replace(
            softmax,
            model=LM(
                width=128, pattern=(rwkv,), repeats=3, norm=LayerNorm(), embed_norm=LayerNorm()
            ),
        ),
    }
