"""GPT-NeoX and Pythia: attention and MLP side by side, heads that turn in part."""

from typing import Any

from lcx.block import Block, ParallelBlock
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.huggingface.llama import position
from lcx.huggingface.parts import (
    ACTIVATIONS,
    WORDS,
    check_heads,
    fused,
    linear,
    norm,
    own_width,
)
from lcx.huggingface.positions import write_positions
from lcx.layers import MLP, LayerNorm
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.positions import RoPE

LAYER = "gpt_neox.layers.{}"


class GPTNeoX:
    """GPT-NeoX and Pythia, with attention and MLP side by side or one after the other."""

    kinds = ("gpt_neox",)
    heads = ("embed_out.weight", "lm_head.weight")

    def read(self, config: Config) -> LM:
        width, heads = config.count("hidden_size"), config.count("num_attention_heads")
        check_heads(config, width, heads)
        config.without(
            *("rotary_pct", "rotary_emb_base"),  # read with the positions
            *("hidden_dropout_prob", "attention_probs_dropout_prob"),
        )
        mixer = SoftmaxAttention(
            heads,
            heads,
            position(config),
            biases=("q", "k", "v", "out") if config.flag("attention_bias", True) else (),
        )
        channel = MLP(
            config.count("intermediate_size"),
            config.among("hidden_act", ACTIVATIONS, "gelu"),
            bias=True,
        )
        layer_norm = LayerNorm(config.number("layer_norm_eps", 1e-5))
        kind = ParallelBlock if config.flag("use_parallel_residual", True) else Block
        return LM(
            vocab=config.count("vocab_size"),
            width=width,
            pattern=(kind(mixer, channel, layer_norm),),
            repeats=config.count("num_hidden_layers"),
            tied=config.flag("tie_word_embeddings", False),
            norm=layer_norm,
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        match block := model.pattern[0]:
            case Block(
                SoftmaxAttention(position=RoPE()) as mixer,
                MLP(bias=True) as channel,
                LayerNorm(eps, bias=True),
            ):
                own_width(mixer, model.width)
            case _:
                return None
        config = {
            "model_type": "gpt_neox",
            "vocab_size": model.vocabulary,
            "hidden_size": model.width,
            "intermediate_size": channel.width(model.width),
            "num_hidden_layers": len(model.pattern) * model.repeats,
            "num_attention_heads": mixer.heads,
            "attention_bias": bool(mixer.biases),
            "hidden_act": WORDS[channel.activation],
            "layer_norm_eps": eps,
            "use_parallel_residual": isinstance(block, ParallelBlock),
            "tie_word_embeddings": model.tied,
        }
        return write_positions(mixer.position, config, "rope_scaling")

    def around(self, model: LM) -> tuple[Rule, ...]:
        embedding = {"embed.embedding": "gpt_neox.embed_in.weight"}
        return rules(embedding) + norm("norm", "gpt_neox.final_layer_norm")

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        mixer: Any = block.mixer
        bias = bool(mixer.biases)
        return (
            *norm("mixer_norm", f"{LAYER}.input_layernorm"),
            *fused(f"{LAYER}.attention.query_key_value", bias, mixer.heads),
            *linear("mixer.out", f"{LAYER}.attention.dense", bias),
            *norm("channel_norm", f"{LAYER}.post_attention_layernorm"),
            *linear("channel.up", f"{LAYER}.mlp.dense_h_to_4h", bias=True),
            *linear("channel.down", f"{LAYER}.mlp.dense_4h_to_h", bias=True),
        )
