"""RWKV-4."""

from typing import Any

from lcx.block import Block
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.layers import LayerNorm, RWKVChannelMix
from lcx.mixers import RWKV4
from lcx.model import LM

EMBEDDING = {"embed.embedding": "rwkv.embeddings.weight"}
NORMS = {"embed_norm": "rwkv.blocks.0.pre_ln", "norm": "rwkv.ln_out"}
BLOCK_NORMS = {"mixer_norm": "ln1", "channel_norm": "ln2"}
TIME = {"decay": "time_decay", "bonus": "time_first"}
MIXED = {"mix_k": "time_mix_key", "mix_v": "time_mix_value", "mix_r": "time_mix_receptance"}
KERNELS = {"key": "key", "value": "value", "receptance": "receptance", "out": "output"}
LAST_EPS = 1e-5
"""Of the last norm, in transformers, whatever a config says."""


class RWKV4Family:
    """RWKV-4 as transformers has it: the embedding's norm is the first block's."""

    kinds = ("rwkv",)
    heads = ("head.weight",)

    def read(self, config: Config) -> LM:
        width = config.count("hidden_size")
        config.only(attention_hidden_size=width)
        # The longest piece at once, in code for GPUs. And after how many layers that code halves
        # what it reads, with the weights, so that fp16 holds it: the model is the same.
        config.without("context_length", "rescale_every")
        norm = LayerNorm(config.number("layer_norm_epsilon", 1e-5))
        channel = RWKVChannelMix(config.count("intermediate_size", 4 * width))
        return LM(
            vocab=config.count("vocab_size"),
            width=width,
            pattern=(Block(RWKV4(), channel, norm),),
            repeats=config.count("num_hidden_layers"),
            tied=config.flag("tie_word_embeddings", False),
            norm=LayerNorm(LAST_EPS),
            embed_norm=norm,
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        match model.pattern[0]:
            case Block(RWKV4(), RWKVChannelMix() as channel, LayerNorm() as norm):
                pass
            case _:
                return None
        return {
            "model_type": "rwkv",
            "vocab_size": model.vocabulary,
            "hidden_size": model.width,
            "attention_hidden_size": model.width,
            "intermediate_size": channel.width(model.width),
            "num_hidden_layers": len(model.pattern) * model.repeats,
            "layer_norm_epsilon": norm.eps,
            "rescale_every": 0,
            "tie_word_embeddings": model.tied,
        }

    def around(self, model: LM) -> tuple[Rule, ...]:
        return rules(EMBEDDING | _norms(NORMS, "{}"))

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        found = _norms(BLOCK_NORMS, "rwkv.blocks.{{}}.{}")
        mixes = []
        for place, there, kernels in (
            ("mixer", "attention", [*KERNELS]),
            ("channel", "feed_forward", ["key", "value", "receptance"]),
        ):
            stem = f"rwkv.blocks.{{}}.{there}"
            found |= {f"{place}.{n}.kernel": f"{stem}.{KERNELS[n]}.weight" for n in kernels}
            mixes += [
                Rule(f"{stem}.{theirs}", (f"{place}.{ours}",), shape=(1, 1, -1))
                for ours, theirs in MIXED.items()
                if place == "mixer" or ours != "mix_v"
            ]
        stem = "rwkv.blocks.{}.attention"
        found |= {f"mixer.{ours}": f"{stem}.{theirs}" for ours, theirs in TIME.items()}
        return (*rules(found), *mixes)


def _norms(names: dict[str, str], at: str) -> dict[str, str]:
    """Scale and bias of each norm."""
    both = {"scale": "weight", "bias": "bias"}
    return {
        f"{ours}.{leaf}": f"{at.format(theirs)}.{tensor}"
        for ours, theirs in names.items()
        for leaf, tensor in both.items()
    }
