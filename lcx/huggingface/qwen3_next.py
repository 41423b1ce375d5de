"""Qwen3-Next without experts: layers of Gated DeltaNet between layers of gated attention."""

from dataclasses import replace
from typing import Any

from lcx.block import Block
from lcx.huggingface import llama
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.huggingface.mamba2 import convolution
from lcx.layers import SwiGLU, ZeroCentredRMSNorm
from lcx.mixers import GatedDeltaNet, SoftmaxAttention
from lcx.model import LM
from lcx.positions import RoPE

EXPERTS = (
    *("num_experts", "mlp_only_layers", "decoder_sparse_step", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
    *("output_router_logits", "router_aux_loss_coef"),
)
DELTA = {
    "log_rate": "A_log",
    "step_bias": "dt_bias",
    "scale": "norm.weight",
    "out.kernel": "out_proj.weight",
}
NORM = ZeroCentredRMSNorm(1e-6)
"""A config says one eps of all norms, and Gated DeltaNet's is fixed."""


class Qwen3Next(llama.Llama):
    """Queries have a gate beside each head; one tensor has what Gated DeltaNet reads, by heads."""

    kinds = ("qwen3_next",)

    def read(self, config: Config) -> LM:
        config.only(hidden_act="silu", attention_bias=False, rms_norm_eps=NORM.eps)
        _dense(config)
        config.count("head_dim")  # transformers has 256 where it is not said, not D / H
        channel = SwiGLU(config.count("intermediate_size"))
        attention = replace(llama.attention(config), qk_norm=NORM, gate=True)
        known = {
            "linear_attention": Block(_delta(config), channel, NORM),
            "full_attention": Block(attention, channel, NORM),
        }
        if "layer_types" in config:
            config.without("full_attention_interval")
        every = config.count("full_attention_interval", 4)
        pattern, repeats = llama.layers(config, known, lambda n: [*known][(n + 1) % every == 0])
        return llama.around(config, pattern, repeats)

    def write(self, model: LM) -> dict[str, Any] | None:
        mixers, channel = [block.mixer for block in model.pattern], model.pattern[0].channel
        deltas = [m for m in mixers if isinstance(m, GatedDeltaNet)]
        gated = [m for m in mixers if isinstance(m, SoftmaxAttention) and m.gate]
        if not (deltas or gated) or not isinstance(channel, SwiGLU):
            return None
        # where a model has but one kind of layer, what is said of the other says nothing
        delta = next(iter(deltas), GatedDeltaNet(1))
        attention = next(iter(gated), SoftmaxAttention(delta.groups, position=RoPE()))
        names = "full_attention", "linear_attention"
        kinds = [names[isinstance(mixer, GatedDeltaNet)] for mixer in mixers]
        own = {
            "layer_types": kinds * model.repeats,
            "num_experts": 0,
            "attention_bias": False,
            "linear_conv_kernel_dim": delta.kernel_size,
            "linear_num_key_heads": delta.groups,
            "linear_num_value_heads": delta.heads,
            "linear_key_head_dim": model.width // delta.groups,
            "linear_value_head_dim": delta.expand * model.width // delta.heads,
        }
        return llama.written("qwen3_next", model, attention, channel.width(model.width), own)

    def within(self, model: LM, block: Any) -> tuple[Rule, ...]:
        layer, mixer = "model.layers.{}", block.mixer
        shared = rules(llama.NORMS | llama.gated(bias=False))
        if isinstance(mixer, GatedDeltaNet):
            stem, groups = f"{layer}.linear_attn", mixer.groups
            inputs = tuple(f"mixer.{n}.kernel" for n in ("q", "k", "v", "gate"))
            rates = ("mixer.beta.kernel", "mixer.decay.kernel")
            return (
                *shared,
                *rules({f"mixer.{ours}": f"{stem}.{theirs}" for ours, theirs in DELTA.items()}),
                Rule(f"{stem}.in_proj_qkvz.weight", inputs, groups),
                Rule(f"{stem}.in_proj_ba.weight", rates, groups),
                convolution("mixer.conv", f"{stem}.conv1d.weight", mixer.kernel_size),
            )
        found = llama.projections(mixer)
        queries = found.pop("mixer.q.kernel")
        both = ("mixer.q.kernel", "mixer.gate.kernel")
        return (*shared, *rules(found), Rule(queries, both, mixer.heads))


def _dense(config: Config) -> None:
    """Raise ValueError where a layer has experts."""
    experts, every = config.get("num_experts", 512), config.count("decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers", [])
    layers = range(config.count("num_hidden_layers"))
    sparse = [n for n in layers if experts and n not in dense and (n + 1) % every == 0]
    if sparse:
        raise ValueError(
            f"{config.where}: layers {', '.join(map(str, sparse))} have experts, which lcx does not"
        )
    config.without(*EXPERTS)


def _delta(config: Config) -> GatedDeltaNet:
    groups, heads = config.count("linear_num_key_heads"), config.count("linear_num_value_heads")
    key, value = config.count("linear_key_head_dim"), config.count("linear_value_head_dim")
    width = config.count("hidden_size")
    if groups * key != width or heads * value % width:
        raise ValueError(
            f"{config.where}: {groups} keys of {key} and {heads} values of {value}; only keys that "
            f"are hidden_size {width} together, and values a multiple of that, are supported"
        )
    expand, kernel_size = heads * value // width, config.count("linear_conv_kernel_dim", 4)
    return GatedDeltaNet(heads, expand, kernel_size, groups)
