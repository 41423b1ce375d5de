"""Norms, channel mixers and what else blocks are made of, beside token mixers."""

from lcx.layers.channels import (
    CHANNELS,
    MLP,
    GeGLU,
    RWKV6ChannelMix,
    RWKV7ChannelMix,
    RWKVChannelMix,
    SwiGLU,
)
from lcx.layers.norms import NORMS, LayerNorm, Norm, RMSNorm, ZeroCentredRMSNorm

__all__ = [
    "CHANNELS",
    "MLP",
    "NORMS",
    "GeGLU",
    "LayerNorm",
    "Norm",
    "RMSNorm",
    "RWKV6ChannelMix",
    "RWKV7ChannelMix",
    "RWKVChannelMix",
    "SwiGLU",
    "ZeroCentredRMSNorm",
]
