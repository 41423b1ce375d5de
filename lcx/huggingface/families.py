"""All families."""

from lcx.huggingface.bloom import Bloom
from lcx.huggingface.falcon import Falcon
from lcx.huggingface.family import Family
from lcx.huggingface.gemma2 import Gemma2
from lcx.huggingface.gpt2 import GPT2
from lcx.huggingface.gpt_neox import GPTNeoX
from lcx.huggingface.llama import Llama
from lcx.huggingface.mamba2 import Mamba2Family
from lcx.huggingface.mpt import MPT
from lcx.huggingface.phi3 import Phi3
from lcx.huggingface.qwen import Qwen
from lcx.huggingface.qwen3_next import Qwen3Next
from lcx.huggingface.recurrent_gemma import RecurrentGemma
from lcx.huggingface.rwkv4 import RWKV4Family

FAMILIES: tuple[Family, ...] = (
    Llama(),
    Qwen(),
    Phi3(),
    Gemma2(),
    GPT2(),
    GPTNeoX(),
    Falcon(),
    Bloom(),
    MPT(),
    RWKV4Family(),
    Mamba2Family(),
    RecurrentGemma(),
    Qwen3Next(),
)
