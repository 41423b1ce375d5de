"""BLOOM: ALiBi, and a norm after the embedding."""

from typing import Any

from lcx.block import Block
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.huggingface.llama import position
from lcx.huggingface.parts import check_heads, fused, linear, norm, own_width
from lcx.huggingface.positions import write_positions
from lcx.layers import MLP, LayerNorm
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.positions import ALiBi

LAYER = "transformer.h.{}"


class Bloom:
    """BLOOM and BLOOMZ."""

    kinds = ("bloom",)
    heads = ("lm_head.weight",)

    def read(self, config: Config) -> LM:
        width = config.agreed("hidden_size", "n_embed")
        heads = config.agreed("n_head", "num_attention_heads")
        check_heads(config, width, heads)
        config.only(apply_residual_connection_post_layernorm=False, n_inner=4 * width)
        config.without(
            *("slow_but_exact", "attention_softmax_in_fp32"),  # how exactly
            *("bias_dropout_fusion", "masked_softmax_fusion"),  # how fast
            *("skip_bias_add", "skip_bias_add_qkv", "offset_alibi", "unk_token_id"),  # of training
            "seq_length",  # the longest text
        )
        mixer = SoftmaxAttention(heads, heads, position(config), biases=("q", "k", "v", "out"))
        channel = MLP(4 * width, "gelu_tanh", bias=True)
        layer_norm = LayerNorm(config.number("layer_norm_epsilon", 1e-5))
        return LM(
            vocab=config.count("vocab_size"),
            width=width,
            pattern=(Block(mixer, channel, layer_norm),),
            repeats=config.agreed("n_layer", "num_hidden_layers"),
            tied=config.flag("tie_word_embeddings", True),
            norm=layer_norm,
            embed_norm=layer_norm,
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        match model.pattern[0], model.embed_norm:
            case (
                Block(
                    SoftmaxAttention(position=ALiBi()) as mixer,
                    MLP(bias=True),
                    LayerNorm(eps, bias=True),
                ),
                LayerNorm(),
            ):
                own_width(mixer, model.width)
            case _:
                return None
        config = {
            "model_type": "bloom",
            "vocab_size": model.vocabulary,
            "hidden_size": model.width,
            "n_layer": len(model.pattern) * model.repeats,
            "n_head": mixer.heads,
            "layer_norm_epsilon": eps,
            "tie_word_embeddings": model.tied,
        }
        return write_positions(mixer.position, config)

    def around(self, model: LM) -> tuple[Rule, ...]:
        embedding = {"embed.embedding": "transformer.word_embeddings.weight"}
        return (
            *rules(embedding),
            *norm("embed_norm", "transformer.word_embeddings_layernorm"),
            *norm("norm", "transformer.ln_f"),
        )

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        mixer: Any = block.mixer
        return (
            *norm("mixer_norm", f"{LAYER}.input_layernorm"),
            *fused(f"{LAYER}.self_attention.query_key_value", bias=True, groups=mixer.heads),
            *linear("mixer.out", f"{LAYER}.self_attention.dense", bias=True),
            *norm("channel_norm", f"{LAYER}.post_attention_layernorm"),
            *linear("channel.up", f"{LAYER}.mlp.dense_h_to_4h", bias=True),
            *linear("channel.down", f"{LAYER}.mlp.dense_4h_to_h", bias=True),
        )
