"""Fine-tuning with few parameters: one file a method, one line each in the table."""

from lcx.adapters.bias import BiasTuning
from lcx.adapters.bottleneck import Adapter
from lcx.adapters.head import HeadTuning
from lcx.adapters.lora import LoRA
from lcx.adapters.protocol import Tuning

ADAPTERS: dict[str, type] = {c.__name__: c for c in (LoRA, Adapter, BiasTuning, HeadTuning)}

__all__ = ["ADAPTERS", "Adapter", "BiasTuning", "HeadTuning", "LoRA", "Tuning"]
