"""Published models, in and out: one file a family."""

from lcx.huggingface.families import FAMILIES
from lcx.huggingface.pretrained import Pretrained

__all__ = ["FAMILIES", "Pretrained"]
