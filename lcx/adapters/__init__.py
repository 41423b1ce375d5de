"""Fine-tuning with few parameters: one file a method, one line each in the table."""

from lcx.adapters.bias import BiasTuning
from lcx.adapters.bottleneck import Adapter
from lcx.adapters.head import HeadTuning
from lcx.adapters.initial_state import InitialState
from lcx.adapters.lora import LoRA
from lcx.adapters.prefix import PrefixTuning
from lcx.adapters.prompt import PromptTuning, PTuning
from lcx.adapters.protocol import HasVirtualTokens, Tuning

ADAPTERS: dict[str, type] = {
    c.__name__: c
    for c in (
        LoRA,
        Adapter,
        PromptTuning,
        PTuning,
        PrefixTuning,
        InitialState,
        HeadTuning,
        BiasTuning,
    )
}

__all__ = [
    "ADAPTERS",
    "Adapter",
    "BiasTuning",
    "HasVirtualTokens",
    "HeadTuning",
    "InitialState",
    "LoRA",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "Tuning",
]
