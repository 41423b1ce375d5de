"""All families."""

from lcx.huggingface.bloom import Bloom
from lcx.huggingface.falcon import Falcon
from lcx.huggingface.family import Family
from lcx.huggingface.gpt2 import GPT2
from lcx.huggingface.gpt_neox import GPTNeoX
from lcx.huggingface.llama import Llama
from lcx.huggingface.mpt import MPT

FAMILIES: tuple[Family, ...] = (Llama(), GPT2(), GPTNeoX(), Falcon(), Bloom(), MPT())
