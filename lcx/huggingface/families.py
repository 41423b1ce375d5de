"""All families."""

from lcx.huggingface.family import Family
from lcx.huggingface.llama import Llama

FAMILIES: tuple[Family, ...] = (Llama(),)
