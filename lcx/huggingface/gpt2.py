"""GPT-2: learned positions, and projections that are kept as [in, out]."""

from dataclasses import replace
from typing import Any

from lcx.block import Block
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.huggingface.llama import period
from lcx.huggingface.parts import ACTIVATIONS, WORDS, check_heads, fused, linear, norm, own_width
from lcx.huggingface.positions import read_positions, write_positions
from lcx.layers import MLP, LayerNorm
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.positions import Learned, NoPE

LAYER = "transformer.h.{}"


class GPT2:
    """GPT-2, and those that were trained by its code."""

    kinds = ("gpt2",)
    heads = ("lm_head.weight",)

    def read(self, config: Config) -> LM:
        width = config.agreed("n_embd", "hidden_size")
        heads = config.agreed("n_head", "num_attention_heads")
        check_heads(config, width, heads)
        config.only(
            n_ctx=config.count("n_positions"),  # an older name of the same
            add_cross_attention=False,
        )
        config.without("reorder_and_upcast_attn")  # in which order, and how exactly
        positions = read_positions(config.said)
        assert isinstance(positions, Learned)
        mixer = SoftmaxAttention(
            heads,
            heads,
            NoPE(),
            biases=("q", "k", "v", "out"),
        )
        channel = MLP(
            config.count("n_inner", 4 * width),
            config.among("activation_function", ACTIVATIONS, "gelu_new"),
            bias=True,
        )
        layer_norm = LayerNorm(config.number("layer_norm_epsilon", 1e-5))
        layers = config.agreed("n_layer", "num_hidden_layers")
        scales = _scales(config, width // heads, layers)
        pattern = period(
            tuple(Block(replace(mixer, scale=scale), channel, layer_norm) for scale in scales)
        )
        return LM(
            vocab=config.count("vocab_size"),
            width=width,
            pattern=pattern,
            repeats=layers // len(pattern),
            tied=config.flag("tie_word_embeddings", True),
            norm=layer_norm,
            positions=positions,
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        match model.pattern[0], model.positions:
            case (
                Block(SoftmaxAttention() as mixer, MLP() as channel, LayerNorm(eps, bias=True)),
                Learned(),
            ):
                own_width(mixer, model.width)
            case _:
                return None
        scales = [getattr(block.mixer, "scale", None) for block in model.pattern]
        by_layer = len(set(scales)) > 1
        scaled = scales[0] is None or (by_layer and scales[0] != 1)
        config = {
            "model_type": "gpt2",
            "vocab_size": model.vocabulary,
            "n_embd": model.width,
            "n_layer": len(model.pattern) * model.repeats,
            "n_head": mixer.heads,
            "n_inner": channel.width(model.width),
            "activation_function": WORDS[channel.activation],
            "layer_norm_epsilon": eps,
            "scale_attn_weights": scaled,
            "scale_attn_by_inverse_layer_idx": by_layer,
            "tie_word_embeddings": model.tied,
        }
        return write_positions(model.positions, config)

    def around(self, model: LM) -> tuple[Rule, ...]:
        tables = {
            "embed.embedding": "transformer.wte.weight",
            "positions.table": "transformer.wpe.weight",
        }
        return rules(tables) + norm("norm", "transformer.ln_f")

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        return (
            *norm("mixer_norm", f"{LAYER}.ln_1"),
            *fused(f"{LAYER}.attn.c_attn", bias=True, turned=False),
            *linear("mixer.out", f"{LAYER}.attn.c_proj", bias=True, turned=False),
            *norm("channel_norm", f"{LAYER}.ln_2"),
            *linear("channel.up", f"{LAYER}.mlp.c_fc", bias=True, turned=False),
            *linear("channel.down", f"{LAYER}.mlp.c_proj", bias=True, turned=False),
        )


def _scales(config: Config, head_width: int, layers: int) -> list[float | None]:
    """Factor of each layer's scores; None: the usual one."""
    scaled = config.flag("scale_attn_weights", True)
    if not config.flag("scale_attn_by_inverse_layer_idx", False):
        return [None if scaled else 1.0] * layers
    first = head_width**-0.5 if scaled else 1.0
    return [first / (layer + 1) for layer in range(layers)]
