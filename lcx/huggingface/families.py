"""All families."""

from lcx.huggingface.family import Family
from lcx.huggingface.gemma2 import Gemma2
from lcx.huggingface.llama import Llama
from lcx.huggingface.mamba2 import Mamba2Family
from lcx.huggingface.phi3 import Phi3
from lcx.huggingface.qwen import Qwen
from lcx.huggingface.recurrent_gemma import RecurrentGemma
from lcx.huggingface.rwkv4 import RWKV4Family

FAMILIES: tuple[Family, ...] = (
    Llama(),
    Qwen(),
    Gemma2(),
    Phi3(),
    Mamba2Family(),
    RWKV4Family(),
    RecurrentGemma(),
)
