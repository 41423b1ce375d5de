"""Gemma 2."""

import math
from dataclasses import replace
from typing import Any

from lcx.block import SandwichBlock
from lcx.huggingface import llama
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.layers import GeGLU, ZeroCentredRMSNorm
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.sparsity import Window

NORMS = {
    "mixer_norm.scale": "input_layernorm",
    "mixer_after.scale": "post_attention_layernorm",
    "channel_norm.scale": "pre_feedforward_layernorm",
    "channel_after.scale": "post_feedforward_layernorm",
}
USUAL = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}
USUAL_CAPS = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
"""What transformers has where a config does not say it. A cap of null is said: it is none."""


class Gemma2(llama.Llama):
    """Sandwiched norms, windows in every other layer, bounds on scores and logits."""

    kinds = ("gemma2",)

    def read(self, config: Config) -> LM:
        config.only(hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=False)
        # old files say these, too, which transformers does not read
        config.without("hidden_act", "cache_implementation")
        size = config.count("sliding_window", USUAL["sliding_window"])
        config.only(sliding_window_size=size)
        width = config.count("head_dim", USUAL["head_dim"])
        scalar = config.number("query_pre_attn_scalar", USUAL["query_pre_attn_scalar"])
        mixer = replace(
            llama.attention(config),
            head_width=width,
            kv_heads=config.count("num_key_value_heads"),
            biases=("q", "k", "v", "out") if config.flag("attention_bias", False) else (),
            scale=None if scalar == width else scalar**-0.5,
            softcap=_cap(config, "attn_logit_softcapping"),
        )
        if mixer.heads * width == config.count("hidden_size"):
            mixer = replace(mixer, head_width=None)
        norm = ZeroCentredRMSNorm(config.number("rms_norm_eps", 1e-6))
        block = SandwichBlock(mixer, GeGLU(config.count("intermediate_size")), norm)
        known = llama.windowed(block, size)
        pattern, repeats = llama.layers(config, known, lambda layer: [*known][1 - layer % 2])
        model = llama.around(config, pattern, repeats, tied=True)
        return replace(
            model,
            embed_factor=math.sqrt(model.width),
            softcap=_cap(config, "final_logit_softcapping"),
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        match model.pattern[0]:
            case SandwichBlock(SoftmaxAttention() as mixer, GeGLU() as channel):
                pass
            case _:
                return None
        windows = [s.size for s in llama.sparsities(model) if isinstance(s, Window)]
        width = mixer.head_width or model.width // mixer.heads
        scalar = width if mixer.scale is None else mixer.scale**-2
        own = {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": round(scalar) or 1,  # a whole number, in transformers
            "attn_logit_softcapping": mixer.softcap,
            "final_logit_softcapping": model.softcap,
            "attention_bias": bool(mixer.biases),
            "layer_types": llama.layer_types(model),
            "sliding_window": next(iter(windows), USUAL["sliding_window"]),
        }
        config = llama.written("gemma2", model, mixer, channel.width(model.width), own)
        del config["hidden_act"]
        return config

    def within(self, model: LM, block: Any) -> tuple[Rule, ...]:
        norms = {ours: f"model.layers.{{}}.{theirs}.weight" for ours, theirs in NORMS.items()}
        return rules(norms | llama.projections(block.mixer) | llama.gated(block.channel.bias))


def _cap(config: Config, name: str) -> float | None:
    if name in config.said and config.said[name] is None:
        return None
    return config.number(name, USUAL_CAPS[name])
