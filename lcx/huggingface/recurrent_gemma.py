"""RecurrentGemma, which is Griffin."""

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from lcx.block import Block
from lcx.huggingface import llama
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.huggingface.mamba2 import convolution
from lcx.layers import GeGLU, ZeroCentredRMSNorm
from lcx.mixers import RGLRU, SoftmaxAttention
from lcx.model import LM
from lcx.positions import RoPE
from lcx.sparsity import Window

EMBEDDING = {
    "embed.embedding": "model.embed_tokens.weight",
    "norm.scale": "model.final_norm.weight",
}
NORMS = {"mixer_norm": "temporal_pre_norm", "channel_norm": "channel_pre_norm"}
RECURRENT = {"x": "linear_x", "gate": "linear_y", "out": "linear_out"}
GATES = {"recurrence_gate": "recurrent_gate", "input_gate": "input_gate"}
USUAL = ("recurrent", "recurrent", "attention")


class RecurrentGemma(llama.Llama):
    """Blocks around an RG-LRU, and some around attention over a window."""

    kinds = ("recurrent_gemma",)

    def read(self, config: Config) -> LM:
        width, heads = config.count("hidden_size"), config.count("num_attention_heads")
        config.only(hidden_activation="gelu_pytorch_tanh", embeddings_scale_by_sqrt_dim=True)
        config.only(lru_width=width, head_dim=width // heads)
        # of how training begins
        config.without("w_init_variance_scale", "final_w_init_variance_scale")
        norm = ZeroCentredRMSNorm(config.number("rms_norm_eps", 1e-6))
        hidden, rest = divmod(config.count("intermediate_size"), 2)
        if rest or not hidden:
            raise ValueError(
                f"{config.where}: intermediate_size has to be even: it is of both parts"
            )
        channel = GeGLU(hidden, bias=True)
        projected = ("q", "k", "v") if config.flag("attention_bias", False) else ()
        attention = replace(
            llama.attention(config),
            sparsity=Window(config.count("attention_window_size", 2048)),
            biases=(*projected, "out"),
        )
        recurrent = RGLRU(heads, config.count("conv1d_width", 4), bias=True)
        mixers = {"recurrent": recurrent, "attention": attention}
        turns, count = config.get("block_types", USUAL), config.count("num_hidden_layers")
        if not turns or not set(turns) <= mixers.keys():
            raise ValueError(
                f"{config.where}: block_types has to name some of {', '.join(mixers)}, and is "
                f"{turns!r}"
            )
        turns = [turns[layer % len(turns)] for layer in range(count)]
        pattern = llama.period(tuple(Block(mixers[turn], channel, norm) for turn in turns))
        model = llama.around(config, pattern, count // len(pattern), tied=True)
        return replace(
            model, embed_factor=_factor(width), softcap=config.number("logits_soft_cap", 30.0)
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        mixers = [block.mixer for block in model.pattern]
        recurrent = next((m for m in mixers if isinstance(m, RGLRU)), None)
        channel = model.pattern[0].channel
        if recurrent is None or not isinstance(channel, GeGLU):
            return None
        # without one layer of attention, its settings say nothing
        alone = SoftmaxAttention(recurrent.heads, position=RoPE(fraction=0.5))
        attention = next((m for m in mixers if isinstance(m, SoftmaxAttention)), alone)
        own = {
            "block_types": ["recurrent" if isinstance(m, RGLRU) else "attention" for m in mixers],
            "hidden_activation": "gelu_pytorch_tanh",
            "lru_width": model.width,
            "conv1d_width": recurrent.kernel_size,
            "attention_bias": "q" in attention.biases,
            "logits_soft_cap": model.softcap,
        }
        if isinstance(attention.sparsity, Window):
            own |= {"attention_window_size": attention.sparsity.size}
        hidden = 2 * channel.width(model.width)
        config = llama.written("recurrent_gemma", model, attention, hidden, own)
        del config["hidden_act"]
        return config

    def around(self, model: LM) -> tuple[Rule, ...]:
        return rules(EMBEDDING)

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        layer = "model.layers.{}"
        found = {f"{n}.scale": f"{layer}.{theirs}.weight" for n, theirs in NORMS.items()}
        found |= _linear("channel", f"{layer}.mlp_block", llama.GATED)
        stem = f"{layer}.temporal_block"
        if not isinstance(block.mixer, RGLRU):
            return rules(found | llama.projections(block.mixer, stem))
        found |= _linear("mixer", stem, RECURRENT)
        found |= {"mixer.conv_bias": f"{stem}.conv_1d.bias"}
        found |= {"mixer.rate": f"{stem}.rg_lru.recurrent_param"}
        found |= {f"mixer.{n}.weight": f"{stem}.rg_lru.{t}_weight" for n, t in GATES.items()}
        heads = block.mixer.heads
        return (
            *rules(found),
            convolution("mixer.conv", f"{stem}.conv_1d.weight", block.mixer.kernel_size),
            *(
                Rule(f"{stem}.rg_lru.{theirs}_bias", (f"mixer.{ours}.bias",), shape=(heads, -1))
                for ours, theirs in GATES.items()
            ),
        )


def _linear(place: str, stem: str, names: dict[str, str]) -> dict[str, str]:
    """Kernels and biases."""
    both = {"kernel": "weight", "bias": "bias"}
    return {
        f"{place}.{ours}.{leaf}": f"{stem}.{theirs}.{tensor}"
        for ours, theirs in names.items()
        for leaf, tensor in both.items()
    }


def _factor(width: int) -> float:
    """Transformers keeps the embedding's factor in bf16, whatever the weights are in."""
    return float(jnp.bfloat16(math.sqrt(width)))
