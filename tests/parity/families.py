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


class Small(NamedTuple):
    """One small model."""

    config: str
    """Transformers' class of its config."""
    settings: dict[str, Any]
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
}
