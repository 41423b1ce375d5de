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


class Small(NamedTuple):
    """One small model."""

    config: str
    """Transformers' class of its config."""
    settings: dict[str, Any]
    attention: str = "eager"
    """Which of their implementations."""
    within: float = 1e-5
    """Largest error of a logit; measured: up to 5e-6."""


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
}
