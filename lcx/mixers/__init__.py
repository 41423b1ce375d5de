"""Token mixers: one file each, one line each in the table."""

from lcx.mixers.linear_attention import LinearAttention
from lcx.mixers.retnet import RetNet
from lcx.mixers.rwkv4 import RWKV4
from lcx.mixers.softmax_attention import SoftmaxAttention

MIXERS: dict[str, type] = {
    c.__name__: c for c in (SoftmaxAttention, LinearAttention, RetNet, RWKV4)
}

__all__ = ["MIXERS", "RWKV4", "LinearAttention", "RetNet", "SoftmaxAttention"]
