"""MPT: ALiBi, and no bias anywhere, of norms neither."""

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

LAYER = "transformer.blocks.{}"


class MPT:
    """MPT of ALiBi and as many KV heads as heads."""

    kinds = ("mpt",)
    heads = ("lm_head.weight",)

    def read(self, config: Config) -> LM:
        width = config.agreed("d_model", "hidden_size")
        heads = config.agreed("n_heads", "num_attention_heads")
        check_heads(config, width, heads)
        config.only(expansion_ratio=4, no_bias=True, logit_scale=None, embedding_fraction=1.0)
        same = dict.fromkeys(("low_precision_layernorm", "layernorm"))
        config.among("norm_type", same, "layernorm")
        config.without(
            "learned_pos_emb",  # there are none beside ALiBi
            "max_seq_len",  # the longest text
            *("init_device", "init_config", "tokenizer_name", "verbose", "name", "emb_pdrop"),
        )
        attention = config.part("attn_config")
        attention.only(
            attn_type="multihead_attention",
            clip_qkv=None,
            prefix_lm=False,
            qk_ln=False,
            attn_uses_sequence_id=False,
        )
        attention.without("attn_impl")
        attention.flag("alibi", True)  # read with the positions, like its largest exponent
        attention.number("alibi_bias_max", 8)
        scale = attention.number("softmax_scale") if "softmax_scale" in attention else None
        mixer = SoftmaxAttention(heads, heads, position(config), scale=scale)
        layer_norm = LayerNorm(config.number("layer_norm_epsilon", 1e-5), bias=False)
        return LM(
            vocab=config.count("vocab_size"),
            width=width,
            pattern=(Block(mixer, MLP(4 * width), layer_norm),),
            repeats=config.agreed("n_layers", "num_hidden_layers"),
            tied=config.flag("tie_word_embeddings", True),
            norm=layer_norm,
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        match model.pattern[0]:
            case Block(
                SoftmaxAttention(position=ALiBi() as scheme) as mixer,
                MLP(bias=False),
                LayerNorm(eps, bias=False),
            ):
                own_width(mixer, model.width)
            case _:
                return None
        if scheme.bias_max != 8:
            raise ValueError(f"transformers gives every MPT ALiBi(bias_max=8.0), and not {scheme}")
        config = {
            "model_type": "mpt",
            "vocab_size": model.vocabulary,
            "d_model": model.width,
            "n_layers": len(model.pattern) * model.repeats,
            "n_heads": mixer.heads,
            "layer_norm_epsilon": eps,
            "attn_config": {} if mixer.scale is None else {"softmax_scale": mixer.scale},
            "tie_word_embeddings": model.tied,
        }
        return write_positions(scheme, config)

    def around(self, model: LM) -> tuple[Rule, ...]:
        embedding = {"embed.embedding": "transformer.wte.weight"}
        return rules(embedding) + norm("norm", "transformer.norm_f", bias=False)

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        return (
            *norm("mixer_norm", f"{LAYER}.norm_1", bias=False),
            *fused(f"{LAYER}.attn.Wqkv", bias=False),
            *linear("mixer.out", f"{LAYER}.attn.out_proj", bias=False),
            *norm("channel_norm", f"{LAYER}.norm_2", bias=False),
            *linear("channel.up", f"{LAYER}.ffn.up_proj", bias=False),
            *linear("channel.down", f"{LAYER}.ffn.down_proj", bias=False),
        )
