"""Qwen2 and Qwen3 without experts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lcx.block import Block
from lcx.huggingface import llama
from lcx.huggingface.config import Config
from lcx.layers import RMSNorm, SwiGLU
from lcx.model import LM
from lcx.sparsity import Window


class Qwen(llama.Llama):
    """Qwen2 has biases of queries, keys and values; Qwen3 norms of its queries and keys."""

    kinds = ("qwen2", "qwen3")

    def read(self, config: Config) -> LM:
        config.only(hidden_act="silu", use_mrope=False)
        norm = RMSNorm(config.number("rms_norm_eps", 1e-6))
        channel = SwiGLU(config.count("intermediate_size"))
        if config.said["model_type"] == "qwen3":
            config.count("head_dim")  # transformers has 128 where it is not said, not D / H
            biases = ("q", "k", "v", "out") if config.flag("attention_bias", False) else ()
            mixer = replace(llama.attention(config), biases=biases, qk_norm=norm)
        else:
            mixer = replace(llama.attention(config), biases=("q", "k", "v"))
        known = llama.windowed(Block(mixer, channel, norm), _window(config))
        pattern, repeats = llama.layers(config, known, _usual(config, [*known][-1]))
        return llama.around(config, pattern, repeats)

    def write(self, model: LM) -> dict[str, Any] | None:
        if (parts := llama.sublayers(model)) is None:
            return None
        mixer, channel = parts
        types = llama.layer_types(model)
        windows = [s for s in llama.sparsities(model) if isinstance(s, Window)]
        own: dict[str, Any] = {"use_sliding_window": bool(windows), "layer_types": types}
        # what older transformers read in place of layer_types, and can say of windows that follow
        first = types.index("sliding_attention") if windows else len(types)
        own |= {"max_window_layers": first}
        if windows:
            own |= {"sliding_window": windows[0].size}
        if mixer.qk_norm:
            own |= {"attention_bias": bool(mixer.biases)}
        kind = "qwen3" if mixer.qk_norm else "qwen2"
        return llama.written(kind, model, mixer, channel.width(model.width), own)


def _window(config: Config) -> int | None:
    """The size of windows. None: the config uses none, whatever size it says."""
    if not config.flag("use_sliding_window", False):
        config.without("sliding_window")
        return None
    return llama.window(config)


def _usual(config: Config, windowed: str) -> Callable[[int], str]:
    """Which kind a layer is where `layer_types` does not say it: the last ones see a window."""
    if "layer_types" in config:
        config.without("max_window_layers")
    first = config.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        raise ValueError(f"{config.where}: max_window_layers is {first!r}, not a number of layers")
    return lambda layer: windowed if layer >= first else "full_attention"
