"""Configs of Qwen, Gemma, Phi, Mamba, RWKV and RecurrentGemma in the words of published ones."""

from dataclasses import replace
from typing import Any

import pytest

from lcx.block import Block, SandwichBlock
from lcx.huggingface.export import family_of
from lcx.layers import MLP, GeGLU, LayerNorm, RMSNorm, RWKVChannelMix, SwiGLU, ZeroCentredRMSNorm
from lcx.mixers import RGLRU, RWKV4, GatedDeltaNet, Mamba2, SoftmaxAttention
from lcx.model import LM
from lcx.positions import LongRoPE, RoPE
from lcx.sparsity import Window
from tests.test_families import read

QWEN2: dict[str, Any] = {  # like Qwen/Qwen2.5-0.5B
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = QWEN2 | {  # like Qwen/Qwen3-0.6B
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}
GEMMA2: dict[str, Any] = {  # like google/gemma-2-2b
    "model_type": "gemma2",
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
PHI3: dict[str, Any] = {  # like microsoft/Phi-3-mini-128k-instruct
    "model_type": "phi3",
    "attention_bias": False,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
MAMBA2: dict[str, Any] = {
    "model_type": "mamba2",
    "chunk_size": 256,
    "conv_kernel": 4,
    "expand": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 768,
    "layer_norm_epsilon": 1e-05,
    "n_groups": 1,
    "num_heads": 24,
    "num_hidden_layers": 24,
    "residual_in_fp32": True,
    "state_size": 128,
    "tie_word_embeddings": True,
    "time_step_limit": [0.0, float("inf")],
    "time_step_rank": 48,
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 50288,
}
CODESTRAL = MAMBA2 | {  # like mistralai/Mamba-Codestral-7B-v0.1
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "n_groups": 8,
    "norm_before_gate": True,
    "num_heads": 128,
    "num_hidden_layers": 64,
    "rms_norm": True,
    "tie_word_embeddings": False,
    "time_step_init_scheme": "random",
    "time_step_rank": 256,
    "time_step_scale": 1.0,
    "vocab_size": 32768,
}
QWEN3_NEXT: dict[str, Any] = {  # like Qwen/Qwen3-Next-80B-A3B-Instruct, without its experts
    "model_type": "qwen3_next",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "mlp_only_layers": [],
    "num_attention_heads": 16,
    "num_experts": 0,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
RWKV: dict[str, Any] = {  # like RWKV/rwkv-4-169m-pile
    "model_type": "rwkv",
    "attention_hidden_size": 768,
    "context_length": 1024,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_epsilon": 1e-05,
    "num_hidden_layers": 12,
    "rescale_every": 6,
    "tie_word_embeddings": False,
    "vocab_size": 50277,
}
GRIFFIN: dict[str, Any] = {  # like google/recurrentgemma-2b
    "model_type": "recurrent_gemma",
    "attention_bias": False,
    "attention_window_size": 2048,
    "block_types": ["recurrent", "recurrent", "attention"],
    "conv1d_width": 4,
    "embeddings_scale_by_sqrt_dim": True,
    "final_w_init_variance_scale": 0.07692307692307693,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560,
    "intermediate_size": 15360,
    "logits_soft_cap": 30.0,
    "lru_width": 2560,
    "num_attention_heads": 10,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
    "w_init_variance_scale": 0.01,
}
ZERO = ZeroCentredRMSNorm()
LONG = LongRoPE((1.0,) * 48, (2.0,) * 48, original=4096, factor=32.0)
WIDE = SoftmaxAttention(8, 4, head_width=256, softcap=50.0)
TURNS = (RGLRU(10, bias=True),) * 2 + (
    SoftmaxAttention(10, 1, RoPE(fraction=0.5), Window(2048), biases=("out",)),
)
MODELS = {
    "qwen2": (
        QWEN2,
        LM(
            *(151936, 896),
            (Block(SoftmaxAttention(14, 2, RoPE(1e6), biases=("q", "k", "v")), SwiGLU(4864)),),
            repeats=24,
        ),
    ),
    "qwen3": (
        QWEN3,
        LM(
            *(151936, 1024),
            (
                Block(
                    SoftmaxAttention(16, 8, RoPE(1e6), head_width=128, qk_norm=RMSNorm()),
                    SwiGLU(3072),
                ),
            ),
            repeats=24,
        ),
    ),
    "gemma2": (
        GEMMA2,
        LM(
            *(256000, 2304),
            (
                SandwichBlock(replace(WIDE, sparsity=Window(4096)), GeGLU(9216), ZERO),
                SandwichBlock(WIDE, GeGLU(9216), ZERO),
            ),
            *(13, True, ZERO),
            embed_factor=48.0,
            softcap=30.0,
        ),
    ),
    "phi3": (
        PHI3,
        LM(
            *(32064, 3072),
            (
                Block(
                    SoftmaxAttention(32, 32, RoPE(1e4, LONG), Window(262144)),
                    SwiGLU(8192),
                    RMSNorm(1e-5),
                ),
            ),
            *(32, False, RMSNorm(1e-5)),
        ),
    ),
    "mamba2": (
        MAMBA2,
        LM(50288, 768, (Block(Mamba2(), None, RMSNorm(1e-5)),), 24, norm=RMSNorm(1e-5)),
    ),
    "mamba2, groups": (
        CODESTRAL,
        LM(
            *(32768, 4096, (Block(Mamba2(groups=8), None, RMSNorm(1e-5)),), 64, False),
            norm=RMSNorm(1e-5),
        ),
    ),
    "qwen3_next": (
        QWEN3_NEXT,
        LM(
            *(151936, 2048),
            (
                *(Block(GatedDeltaNet(32, expand=2, key_heads=16), SwiGLU(5120), ZERO),) * 3,
                Block(
                    SoftmaxAttention(
                        *(16, 2, RoPE(1e7, fraction=0.25)),
                        head_width=256,
                        qk_norm=ZERO,
                        gate=True,
                    ),
                    *(SwiGLU(5120), ZERO),
                ),
            ),
            *(12, False, ZERO),
        ),
    ),
    "rwkv": (
        RWKV,
        LM(
            *(50277, 768, (Block(RWKV4(), RWKVChannelMix(3072), LayerNorm()),)),
            *(12, False, LayerNorm(), LayerNorm()),
        ),
    ),
    "recurrent_gemma": (
        GRIFFIN,
        LM(
            *(256000, 2560),
            tuple(Block(TURNS[i % 3], GeGLU(7680, bias=True), ZERO) for i in range(26)),
            *(1, True, ZERO),
            embed_factor=50.5,  # the root of 2560, 50.596, in bf16
            softcap=30.0,
        ),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_published_configs(name):
    said, model = MODELS[name]
    assert read(said) == model
    _, config = family_of(model)
    # a Phi-3 that turns all of each head is a Mistral by other tensors
    assert config["model_type"] == ("mistral" if name == "phi3" else name.split(",")[0])
    assert read(config) == model


def test_windows_of_qwen2():
    """Layers from max_window_layers on see one, where the config says that any does."""
    model = read(QWEN2 | {"use_sliding_window": True, "max_window_layers": 20})
    windows = [isinstance(block.mixer.sparsity, Window) for block in model.pattern]
    assert windows * model.repeats == [False] * 20 + [True] * 4
    _, config = family_of(model)
    assert config["max_window_layers"] == 20


def test_a_null_cap_is_none_and_one_unsaid_is_the_family_s():
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    assert read(GEMMA2 | caps).softcap is None
    assert read(GEMMA2 | caps).pattern[0].mixer.softcap is None
    unsaid = read({name: value for name, value in GEMMA2.items() if name not in caps})
    assert (unsaid.softcap, unsaid.pattern[0].mixer.softcap) == (30.0, 50.0)


def test_groups_of_mamba2_that_are_not_said_are_eight():
    assert read(MAMBA2 | {"n_groups": None}).pattern[0].mixer.groups == 8


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (QWEN2 | {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        (QWEN2 | {"max_window_layers": -1}, "max_window_layers is -1, not a number of layers"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 24}, "with no sliding_window"),
        (QWEN2 | {"partial_rotary_factor": 0.5}, "is 0.5, and qwen2 turns all of a head"),
        (QWEN3 | {"head_dim": None}, "does not say head_dim"),
        (GEMMA2 | {"hidden_activation": "silu"}, "'silu'; only 'gelu_pytorch_tanh'"),
        (GEMMA2 | {"use_bidirectional_attention": True}, "is True; only False"),
        (GEMMA2 | {"sliding_window_size": 2048}, "sliding_window_size is 2048; only 4096"),
        (PHI3 | {"attention_bias": True}, "attention_bias is True; only False"),
        (MAMBA2 | {"use_bias": True}, "use_bias is True; only False"),
        (MAMBA2 | {"use_conv_bias": False}, "use_conv_bias is False; only True"),
        (MAMBA2 | {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06; only 1e-05"),
        (MAMBA2 | {"time_step_limit": [0.0, 0.1]}, r"\[0.0, 0.1\]; only steps without a limit"),
        (MAMBA2 | {"num_heads": 8}, r"8 heads of 64 are not the inner width, 2 \* 768"),
        (CODESTRAL | {"intermediate_size": 4096}, "intermediate_size is 4096; only 8192"),
        (QWEN3_NEXT | {"num_experts": 512}, "layers 0, 1, .*, 47 have experts"),
        (
            QWEN3_NEXT | {"linear_key_head_dim": 64},
            "16 keys of 64 and .* hidden_size 2048 together",
        ),
        (QWEN3_NEXT | {"linear_num_value_heads": 24}, "24 values of 128; .* a multiple of that"),
        (RWKV | {"attention_hidden_size": 64}, "attention_hidden_size is 64; only 768"),
        (GRIFFIN | {"lru_width": 64}, "lru_width is 64; only 2560"),
        (GRIFFIN | {"block_types": ["mamba"]}, "some of recurrent, attention, and is .'mamba'"),
        (GRIFFIN | {"intermediate_size": 7}, "intermediate_size has to be even"),
        (GRIFFIN | {"embeddings_scale_by_sqrt_dim": False}, "is False; only True"),
    ],
)
def test_what_lcx_does_not_do_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        read(said)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            replace(MODELS["rwkv"][1], norm=LayerNorm(1e-3)),
            "rwkv is near: model.norm.eps",
        ),
        (
            replace(MODELS["recurrent_gemma"][1], embed_factor=2560**0.5),
            "recurrent_gemma is near: model.embed_factor",
        ),
        (
            replace(MODELS["mamba2"][1], pattern=(Block(Mamba2(), MLP(), RMSNorm(1e-5)),)),
            "no published family",
        ),
    ],
)
def test_what_no_family_has_is_not_written(model, message):
    with pytest.raises(ValueError, match=message):
        family_of(model)
