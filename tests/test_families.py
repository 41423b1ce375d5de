"""Configs in the words of published models, of sizes like theirs: what is read, what is refused."""

from typing import Any

import pytest

from lcx.block import Block, ParallelBlock
from lcx.huggingface import FAMILIES
from lcx.huggingface.config import Config
from lcx.huggingface.export import family_of
from lcx.layers import MLP, LayerNorm
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.positions import ALiBi, Learned, NoPE, RoPE

GPT2: dict[str, Any] = {  # like openai-community/gpt2
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
PYTHIA: dict[str, Any] = {  # like EleutherAI/pythia-70m
    "model_type": "gpt_neox",
    "hidden_act": "gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
FALCON: dict[str, Any] = {  # like tiiuae/falcon-7b
    "model_type": "falcon",
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "bias": False,
    "hidden_size": 4544,
    "layer_norm_epsilon": 1e-05,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "num_kv_heads": 71,
    "parallel_attn": True,
    "vocab_size": 65024,
}
FALCON_RW = FALCON | {"hidden_size": 2048, "num_attention_heads": 32, "num_kv_heads": 32}
FALCON_RW |= {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}
FALCON_40B = FALCON | {"hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8}
FALCON_40B |= {"new_decoder_architecture": True}
FALCON_11B = FALCON_40B | {"hidden_size": 4096, "num_attention_heads": 32, "rope_theta": 500042.0}
FALCON_11B |= {"num_ln_in_parallel_attn": 1, "ff_factor": 4, "ffn_hidden_size": 16384}
BLOOM: dict[str, Any] = {  # like bigscience/bloom-560m
    "model_type": "bloom",
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "n_embed": 1024,
    "n_inner": None,
    "n_layer": 24,
    "num_attention_heads": 16,
    "offset_alibi": 100,
    "pretraining_tp": 1,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "unk_token_id": 0,
    "vocab_size": 250880,
}
MPT: dict[str, Any] = {  # like mosaicml/mpt-7b
    "model_type": "mpt",
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {"name": "kaiming_normal_", "verbose": 0},
    "init_device": "cpu",
    "learned_pos_emb": True,
    "max_seq_len": 2048,
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "vocab_size": 50432,
}
ALL = ("q", "k", "v", "out")
NORM = LayerNorm()


def read(said: dict[str, Any]) -> LM:
    config = Config(said, "config.json")
    model = next(f for f in FAMILIES if said["model_type"] in f.kinds).read(config)
    config.rest()
    return model


@pytest.mark.parametrize(
    ("said", "block"),
    [
        (GPT2, Block(SoftmaxAttention(12, 12, NoPE(), biases=ALL), MLP(3072, "gelu_tanh", True))),
        (
            PYTHIA,
            ParallelBlock(
                SoftmaxAttention(8, 8, RoPE(fraction=0.25), biases=ALL), MLP(2048, bias=True)
            ),
        ),
        (FALCON, ParallelBlock(SoftmaxAttention(71, 1), MLP(4 * 4544), one_norm=True)),
        (
            FALCON_RW,
            Block(SoftmaxAttention(32, 32, ALiBi(scale=0.125), biases=ALL), MLP(8192, bias=True)),
        ),
        (FALCON_40B, ParallelBlock(SoftmaxAttention(128, 8), MLP(32768))),
        (
            FALCON_11B,
            ParallelBlock(SoftmaxAttention(32, 8, RoPE(500042.0)), MLP(16384), one_norm=True),
        ),
        (
            BLOOM,
            Block(SoftmaxAttention(16, 16, ALiBi(), biases=ALL), MLP(4096, "gelu_tanh", True)),
        ),
        (MPT, Block(SoftmaxAttention(32, 32, ALiBi()), MLP(16384))),
    ],
)
def test_published_configs(said, block):
    model = read(said)
    norm = LayerNorm(bias=said is not MPT)
    assert model.pattern == (type(block)(**vars(block) | {"norm": norm}),)
    assert model.norm == norm
    assert model.embed_norm == (norm if said is BLOOM else None)
    assert model.positions == (Learned(1024) if said is GPT2 else None)
    assert model.tied == (said is not PYTHIA)
    family, config = family_of(model)
    assert config["model_type"] == said["model_type"]
    assert said["model_type"] in family.kinds


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("by_layer", [True, False])
def test_scales_of_gpt2(scaled, by_layer):
    said = {"scale_attn_weights": scaled, "scale_attn_by_inverse_layer_idx": by_layer}
    model = read(GPT2 | said)
    scales = [block.mixer.scale for block in model.pattern * model.repeats]
    first = 0.125 if scaled else 1.0
    usual = [None if scaled else 1.0] * 12
    assert scales == ([first / (layer + 1) for layer in range(12)] if by_layer else usual)
    _, config = family_of(model)
    assert config.items() >= said.items()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (GPT2 | {"n_head": 7}, "7 heads do not divide the width 768"),
        (GPT2 | {"n_ctx": 512}, "n_ctx is 512; only 1024"),
        (GPT2 | {"hidden_size": 8}, "different things: n_embd 768, hidden_size 8"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention is True; only False"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": "yes"}, "'yes', and has to be true or false"),
        (GPT2 | {"activation_function": "quick_gelu"}, "'quick_gelu'; known are gelu, gelu_new"),
        (PYTHIA | {"rotary_pct": 0}, r"fraction must lie in \(0, 1\]"),
        (PYTHIA | {"rotary_emb_base": 0}, "theta must be finite and greater than 1"),
        (PYTHIA | {"use_parallel_residual": "no"}, "'no', and has to be true or false"),
        (FALCON | {"num_kv_heads": 8}, "num_kv_heads is 8, .*there are 1"),
        (FALCON | {"num_ln_in_parallel_attn": 2}, "it may be 1, or, with new_decoder_arch.*, 2"),
        (FALCON_RW | {"num_kv_heads": 8}, "num_kv_heads is 8, .*there are 32"),
        (FALCON_RW | {"num_ln_in_parallel_attn": 1}, "num_ln_in_parallel_attn is 1; only None"),
        (FALCON_40B | {"parallel_attn": False}, "parallel_attn is False; only True"),
        (FALCON_11B | {"ff_factor": 8}, "ff_factor is 8; only 4.0 is supported"),
        (FALCON | {"n_layer": 32}, "says n_layer, which lcx does not know of 'falcon'"),
        (BLOOM | {"apply_residual_connection_post_layernorm": True}, "True; only False"),
        (BLOOM | {"n_inner": 8}, "n_inner is 8; only 4096"),
        (MPT | {"attn_config": MPT["attn_config"] | {"clip_qkv": 6}}, "clip_qkv is 6; only None"),
        (MPT | {"attn_config": MPT["attn_config"] | {"qk_ln": True}}, "qk_ln is True; only False"),
        (MPT | {"attn_config": {"alibi": False}}, "alibi is false"),
        (MPT | {"attn_config": {"kv_n_heads": 8}}, "attn_config says kv_n_heads, which lcx does"),
        (MPT | {"attn_config": 3}, r"attn_config is 3, and has to be an object \{...\}"),
        (MPT | {"expansion_ratio": 8}, "expansion_ratio is 8; only 4"),
        (MPT | {"no_bias": False}, "no_bias is False; only True"),
        (MPT | {"logit_scale": "inv_sqrt_d_model"}, "only None is supported"),
        (MPT | {"embedding_fraction": 0.1}, "embedding_fraction is 0.1; only 1.0"),
        (MPT | {"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'; known are low_precision_lay"),
    ],
)
def test_what_lcx_does_not_do_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        read(said)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            LM(97, 64, (Block(SoftmaxAttention(4, 2), MLP(), NORM),), norm=NORM),
            "a sequential Falcon has 1 or 4 kv_heads",
        ),
        (
            LM(
                *(97, 64, (Block(SoftmaxAttention(4, position=NoPE()), MLP(), NORM),)),
                norm=NORM,
                positions=Learned(64, factor=2.0),
            ),
            r"Learned\(length=64, factor=2.0\) has no spelling",
        ),
        (
            LM(
                *(97, 64),
                (Block(SoftmaxAttention(4, position=ALiBi(16.0)), MLP(), LayerNorm(bias=False)),),
                norm=LayerNorm(bias=False),
            ),
            r"transformers gives every MPT ALiBi\(bias_max=8.0\)",
        ),
        (
            LM(97, 64, (Block(SoftmaxAttention(4, head_width=8), MLP(), NORM),), norm=NORM),
            "its heads are 64 / 4 wide, not 8",
        ),
    ],
)
def test_what_no_family_has_is_not_written(model, message):
    with pytest.raises(ValueError, match=message):
        family_of(model)
