"""Norms, channel mixers and what else blocks are made of, beside token mixers."""

from lcx.layers.channels import CHANNELS, MLP, RWKV7ChannelMix, RWKVChannelMix, SwiGLU
from lcx.layers.norms import NORMS, LayerNorm, Norm, RMSNorm

__all__ = [
    "CHANNELS",
    "MLP",
    "NORMS",
    "LayerNorm",
    "Norm",
    "RMSNorm",
    "RWKV7ChannelMix",
    "RWKVChannelMix",
    "SwiGLU",
]
