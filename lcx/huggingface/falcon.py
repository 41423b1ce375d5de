"""Falcon: queries, keys and values of a group of heads side by side, in three kinds of blocks."""

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
from lcx.positions import ALiBi, RoPE

LAYER = "transformer.h.{}"


class Falcon:
    """Falcon 1 and 2.

    Sequential (Falcon-RW), parallel behind one norm (7B), or the new decoder: parallel behind one
    norm (11B) or two (40B). Transformers rounds the slopes of ALiBi, and their products with the
    positions, to bfloat16; here they are what was published.
    """

    kinds = ("falcon",)
    heads = ("lm_head.weight",)

    def read(self, config: Config) -> LM:
        width, heads = config.agreed("hidden_size", "n_embed"), config.count("num_attention_heads")
        check_heads(config, width, heads)
        config.only(apply_residual_connection_post_layernorm=False)
        config.flag("alibi", False)  # read with the positions
        hidden, bias = config.count("ffn_hidden_size", 4 * width), config.flag("bias", False)
        if "ff_factor" in config:
            config.only(ff_factor=hidden / width)
        mixer = SoftmaxAttention(
            heads,
            _kv_heads(config, heads),
            position(config),
            biases=("q", "k", "v", "out") if bias else (),
        )
        channel = MLP(hidden, config.among("activation", ACTIVATIONS, "gelu"), bias)
        layer_norm = LayerNorm(config.number("layer_norm_epsilon", 1e-5))
        return LM(
            vocab=config.count("vocab_size"),
            width=width,
            pattern=(_block(config, mixer, channel, layer_norm),),
            repeats=config.count("num_hidden_layers"),
            tied=config.flag("tie_word_embeddings", True),
            norm=layer_norm,
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        match block := model.pattern[0]:
            case Block(
                SoftmaxAttention(position=RoPE() | ALiBi()) as mixer,
                MLP() as channel,
                LayerNorm(eps, bias=True),
            ):
                own_width(mixer, model.width)
            case _:
                return None
        parallel = isinstance(block, ParallelBlock)
        one_norm = isinstance(block, ParallelBlock) and block.one_norm
        few = mixer.groups in (1, mixer.heads)
        if not (parallel or few):
            raise ValueError(f"a sequential Falcon has 1 or {mixer.heads} kv_heads")
        new = parallel and not (one_norm and few)
        config = {
            "model_type": "falcon",
            "vocab_size": model.vocabulary,
            "hidden_size": model.width,
            "num_hidden_layers": len(model.pattern) * model.repeats,
            "num_attention_heads": mixer.heads,
            "num_kv_heads": mixer.groups,
            "ffn_hidden_size": channel.width(model.width),
            "activation": WORDS[channel.activation],
            "bias": channel.bias,
            "layer_norm_epsilon": eps,
            "new_decoder_architecture": new,
            "multi_query": mixer.groups == 1,
            "parallel_attn": parallel,
            "tie_word_embeddings": model.tied,
        }
        if new:
            config["num_ln_in_parallel_attn"] = 1 if one_norm else 2
        return write_positions(mixer.position, config, "rope_scaling")

    def around(self, model: LM) -> tuple[Rule, ...]:
        embedding = {"embed.embedding": "transformer.word_embeddings.weight"}
        return rules(embedding) + norm("norm", "transformer.ln_f")

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        mixer: Any = block.mixer
        bias = bool(mixer.biases)
        norms = norm("mixer_norm", f"{LAYER}.input_layernorm")
        if not isinstance(block, ParallelBlock):
            norms += norm("channel_norm", f"{LAYER}.post_attention_layernorm")
        elif not block.one_norm:
            norms = norm("mixer_norm", f"{LAYER}.ln_attn") + norm("channel_norm", f"{LAYER}.ln_mlp")
        return (
            *norms,
            *fused(f"{LAYER}.self_attention.query_key_value", bias, mixer.groups),
            *linear("mixer.out", f"{LAYER}.self_attention.dense", bias),
            *linear("channel.up", f"{LAYER}.mlp.dense_h_to_4h", bias),
            *linear("channel.down", f"{LAYER}.mlp.dense_4h_to_h", bias),
        )


def _kv_heads(config: Config, heads: int) -> int:
    said = config.count("num_kv_heads", heads)
    if config.flag("new_decoder_architecture", False):
        config.without("multi_query")  # which it does not read
        return said
    kv_heads = 1 if config.flag("multi_query", True) else heads
    if said not in (kv_heads, heads):
        raise ValueError(
            f"{config.where}: num_kv_heads is {said}, and without new_decoder_architecture there "
            f"are {kv_heads} (multi_query: {kv_heads == 1})"
        )
    return kv_heads


def _block(config: Config, mixer: SoftmaxAttention, channel: MLP, layer_norm: LayerNorm) -> Block:
    """Of the kind that three of its words say together."""
    new = config.flag("new_decoder_architecture", False)
    if new:
        config.only(parallel_attn=True)  # transformers fails at another
    elif not config.flag("parallel_attn", True):
        config.only(num_ln_in_parallel_attn=None)
        return Block(mixer, channel, layer_norm)
    norms = config.count("num_ln_in_parallel_attn", 2 if new else 1)
    if norms not in ((1, 2) if new else (1,)):
        raise ValueError(
            f"{config.where}: num_ln_in_parallel_attn is {norms}; it may be 1, or, with "
            "new_decoder_architecture, 2"
        )
    return ParallelBlock(mixer, channel, layer_norm, one_norm=norms == 1)
