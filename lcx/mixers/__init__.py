"""Token mixers: one file each, one line each in the table."""

from lcx.mixers.delta_net import DeltaNet, GatedDeltaNet
from lcx.mixers.gated_conv import GatedConv
from lcx.mixers.gla import GLA
from lcx.mixers.lightning import Lightning
from lcx.mixers.linear_attention import LinearAttention
from lcx.mixers.mamba2 import Mamba2
from lcx.mixers.retnet import RetNet
from lcx.mixers.rglru import RGLRU
from lcx.mixers.rwkv4 import RWKV4
from lcx.mixers.rwkv5 import RWKV5
from lcx.mixers.rwkv6 import RWKV6
from lcx.mixers.rwkv7 import RWKV7
from lcx.mixers.softmax_attention import SoftmaxAttention

MIXERS: dict[str, type] = {
    c.__name__: c
    for c in (
        SoftmaxAttention,
        GatedConv,
        LinearAttention,
        Lightning,
        RetNet,
        Mamba2,
        GLA,
        DeltaNet,
        GatedDeltaNet,
        RGLRU,
        RWKV4,
        RWKV5,
        RWKV6,
        RWKV7,
    )
}

__all__ = [
    "GLA",
    "MIXERS",
    "RGLRU",
    "RWKV4",
    "RWKV5",
    "RWKV6",
    "RWKV7",
    "DeltaNet",
    "GatedConv",
    "GatedDeltaNet",
    "Lightning",
    "LinearAttention",
    "Mamba2",
    "RetNet",
    "SoftmaxAttention",
]
