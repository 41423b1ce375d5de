"""Small models of every family, as transformers makes them: what the tests of families go over."""

from typing import Any, NamedTuple

SIZES = {"vocab_size": 97, "num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": None}
LLAMA = SIZES | {
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
GPT2 = SIZES | {"n_embd": 64, "n_head": 4, "n_positions": 64}
NEOX = SIZES | {"hidden_size": 64, "intermediate_size": 88, "num_attention_heads": 4}
FALCON = SIZES | {"hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 88}
FALCON_NEW = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
FALCON_RW = {"parallel_attn": False, "multi_query": False, "alibi": True, "bias": True}
BLOOM = SIZES | {"hidden_size": 48, "n_head": 3}
MPT = SIZES | {"d_model": 48, "n_heads": 3, "max_seq_len": 64}

GEMMA = LLAMA | {
    "hidden_size": 48,
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": 9,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 1.5, 3.0, 4.0],
}
MAMBA = SIZES | {
    "hidden_size": 32,
    "num_heads": 4,
    "head_dim": 16,
    "state_size": 8,
    "n_groups": 1,
}
RWKV = SIZES | {
    "hidden_size": 64,
    "layer_norm_epsilon": 1e-3,  # large enough that the logits show it
    "rescale_every": 0,  # otherwise it halves weights and activations in evaluation
}
NEXT = LLAMA | {
    "head_dim": 24,
    "num_experts": 0,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}
GRIFFIN = SIZES | {
    "pad_token_id": None,
    "num_hidden_layers": 3,
    "hidden_size": 80,  # whose root is another number in bf16
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "attention_window_size": 9,
    "logits_soft_cap": 3.0,
}


class Small(NamedTuple):
    """One small model."""

    config: str
    """Transformers' class of its config."""
    settings: dict[str, Any]
    attention: str = "eager"
    """Which of their implementations."""
    within: float = 1e-5
    """Largest error of a logit; measured: up to 6e-6, or as stands beside it."""
    gradients: float = 1e-5
    """Largest error of a gradient, in parts of the largest entry; measured: up to 2.8e-6."""


SMALL: dict[str, Small] = {
    "llama": Small("LlamaConfig", LLAMA),
    "llama, biased and tied": Small(
        "LlamaConfig",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": Small("MistralConfig", LLAMA | {"sliding_window": 9, "head_dim": 24}),
    "ministral": Small(
        "MinistralConfig",
        LLAMA
        | {"sliding_window": 9, "head_dim": 16}
        | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gpt2": Small("GPT2Config", GPT2),
    "gpt2, untied, scaled by layer": Small(
        "GPT2Config",
        GPT2
        | {"n_inner": 88, "activation_function": "relu"}
        | {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}
        | {"tie_word_embeddings": False},
    ),
    "gpt_neox": Small("GPTNeoXConfig", NEOX),
    "gpt_neox, sequential and tied": Small(
        "GPTNeoXConfig",
        NEOX
        | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
        | {"rotary_pct": 1.0, "rotary_emb_base": 500.0, "hidden_act": "gelu_new"},
    ),
    "falcon": Small("FalconConfig", FALCON),
    "falcon, sequential": Small(
        "FalconConfig", FALCON | {"parallel_attn": False, "activation": "gelu_new"}
    ),
    # their eager form (5.23) adds the bias twice
    "falcon, sequential, alibi": Small("FalconConfig", FALCON | FALCON_RW, "sdpa"),
    "falcon, new, two norms": Small("FalconConfig", FALCON_NEW | {"bias": True}),
    "falcon, new, one norm, untied": Small(
        "FalconConfig", FALCON_NEW | {"num_ln_in_parallel_attn": 1, "tie_word_embeddings": False}
    ),
    "bloom": Small("BloomConfig", BLOOM),
    "mpt": Small("MptConfig", MPT),
    "mpt, scaled and untied": Small(
        "MptConfig", MPT | {"attn_config": {"softmax_scale": 0.1}, "tie_word_embeddings": False}
    ),
    "qwen2": Small("Qwen2Config", LLAMA | {"tie_word_embeddings": True}),
    "qwen2, windowed": Small(
        "Qwen2Config",
        LLAMA | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": Small(
        "Qwen3Config",
        LLAMA
        | {"head_dim": 24, "use_sliding_window": True, "sliding_window": 9}
        | {"max_window_layers": 0},
    ),
    "qwen3, biased": Small("Qwen3Config", LLAMA | {"head_dim": 16, "attention_bias": True}),
    "gemma2": Small("Gemma2Config", GEMMA, within=1e-4),  # measured: 2e-5
    "gemma2, biased, untied, unbounded": Small(
        "Gemma2Config",
        GEMMA
        | {"attention_bias": True, "tie_word_embeddings": False, "head_dim": 12}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        | {"layer_types": ["full_attention", "full_attention"]},
        within=1e-4,  # measured: 2e-5
        gradients=2e-5,  # measured: 4.3e-6
    ),
    "phi3": Small(
        "Phi3Config",
        LLAMA | {"sliding_window": 9, "tie_word_embeddings": True, "partial_rotary_factor": 0.5},
    ),
    "phi3, long": Small(
        "Phi3Config",
        LLAMA
        | {"rope_parameters": LONG, "max_position_embeddings": 128}
        | {"original_max_position_embeddings": 32},
    ),
    "mamba2": Small(
        "Mamba2Config",
        MAMBA,
        within=3e-4,  # measured: 7e-5, of which theirs has 4e-5
        gradients=6e-5,  # measured: 1.3e-5, of the decays
    ),
    "mamba2, tied": Small(
        "Mamba2Config",
        MAMBA | {"tie_word_embeddings": True, "conv_kernel": 3},
        within=3e-4,
        gradients=6e-5,
    ),
    "mamba2, groups": Small(
        "Mamba2Config",
        MAMBA | {"n_groups": 2},
        within=3e-4,
        gradients=1e-4,  # measured: 2.5e-5, of a norm's scale; theirs is as far from float64
    ),
    "rwkv": Small("RwkvConfig", RWKV | {"intermediate_size": 112}),
    "rwkv, tied": Small("RwkvConfig", RWKV | {"tie_word_embeddings": True}),
    "recurrent_gemma": Small(
        "RecurrentGemmaConfig",
        GRIFFIN,
        within=5e-5,  # measured: 1.1e-5
        gradients=3e-5,  # measured: 6.3e-6
    ),
    "recurrent_gemma, biased and untied": Small(
        "RecurrentGemmaConfig",
        GRIFFIN
        | {"attention_bias": True, "tie_word_embeddings": False, "num_key_value_heads": 2}
        | {"block_types": ["attention", "recurrent"], "conv1d_width": 3},
        within=5e-5,
        gradients=3e-5,
    ),
    "qwen3_next": Small(
        "Qwen3NextConfig",
        NEXT,
        within=6e-5,  # measured: 1.3e-5; each is as far from float64
        gradients=3e-5,  # measured: 5e-6
    ),
    "qwen3_next, shared keys": Small(
        "Qwen3NextConfig",
        NEXT | {"linear_num_value_heads": 8, "linear_value_head_dim": 24},
        within=1e-4,  # measured: 2.3e-5; each is as far from float64
        gradients=4e-5,  # measured: 8.2e-6
    ),
}
