"""Mamba-2."""

from typing import Any

from lcx.block import Block
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.layers import RMSNorm
from lcx.mixers import Mamba2
from lcx.model import LM

EMBEDDING = {
    "embed.embedding": "backbone.embeddings.weight",
    "norm.scale": "backbone.norm_f.weight",
}
MIXER = {
    "conv_bias": "conv1d.bias",
    "log_rate": "A_log",
    "step_bias": "dt_bias",
    "skip": "D",
    "scale": "norm.weight",
    "out.kernel": "out_proj.weight",
}
INPUTS = ("gate", "x", "b", "c", "step")
"""In the order in which one tensor has them."""
EPS = 1e-5
"""Of the mixer's norm, which a config says together with that of the others."""
LIMITS = [0.0, float("inf")], [0.0, {"__float__": "Infinity"}]
"""None of a step, as JSON has it, and as transformers 5 does."""


class Mamba2Family:
    """Mamba-2. Its gated norm is each group's own, as in its authors' code and transformers 5.23.

    Some older code, transformers among it, normalises over all groups together: of a model of
    several groups, such as Codestral Mamba, it computes something else.
    """

    kinds = ("mamba2",)
    heads = ("lm_head.weight",)

    def read(self, config: Config) -> LM:
        config.only(use_bias=False, use_conv_bias=True, hidden_act="silu", layer_norm_epsilon=EPS)
        config.only(rms_norm=True)  # old files say these two; the second was never read
        config.without("norm_before_gate")
        limit = config.get("time_step_limit", LIMITS[0])
        if [*limit] not in LIMITS:
            raise ValueError(
                f"{config.where}: time_step_limit is {limit}; only steps without a limit, "
                "[0.0, Infinity], are supported"
            )
        # of how training begins; of the code's speed; of rounding
        config.without("time_step_rank", "time_step_min", "time_step_max", "time_step_floor")
        config.without("time_step_init_scheme", "time_step_scale")
        config.without("rescale_prenorm_residual", "chunk_size", "residual_in_fp32")
        mixer = Mamba2(
            state=config.count("state_size", 128),
            head_width=config.count("head_dim", 64),
            expand=config.count("expand", 2),
            kernel_size=config.count("conv_kernel", 4),
            groups=config.count("n_groups", 8),
        )
        heads, width = config.count("num_heads"), config.count("hidden_size")
        config.only(intermediate_size=mixer.expand * width)
        if heads * mixer.head_width != mixer.expand * width:
            raise ValueError(
                f"{config.where}: {heads} heads of {mixer.head_width} are not the inner width, "
                f"{mixer.expand} * {width}"
            )
        norm = RMSNorm(EPS)
        return LM(
            vocab=config.count("vocab_size"),
            width=width,
            pattern=(Block(mixer, None, norm),),
            repeats=config.count("num_hidden_layers"),
            tied=config.flag("tie_word_embeddings", False),
            norm=norm,
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        match model.pattern[0]:
            case Block(Mamba2() as mixer, None, RMSNorm() as norm):
                pass
            case _:
                return None
        return {
            "model_type": "mamba2",
            "vocab_size": model.vocabulary,
            "hidden_size": model.width,
            "num_hidden_layers": len(model.pattern) * model.repeats,
            "num_heads": mixer.head_count(model.dims),
            "head_dim": mixer.head_width,
            "state_size": mixer.state,
            "expand": mixer.expand,
            "conv_kernel": mixer.kernel_size,
            "n_groups": mixer.groups,
            "use_bias": False,
            "use_conv_bias": True,
            "hidden_act": "silu",
            "layer_norm_epsilon": norm.eps,
            "tie_word_embeddings": model.tied,
        }

    def around(self, model: LM) -> tuple[Rule, ...]:
        return rules(EMBEDDING)

    def within(self, model: LM, block: Any) -> tuple[Rule, ...]:
        stem = "backbone.layers.{}.mixer"
        return (
            *rules({"mixer_norm.scale": "backbone.layers.{}.norm.weight"}),
            *rules({f"mixer.{ours}": f"{stem}.{theirs}" for ours, theirs in MIXER.items()}),
            Rule(f"{stem}.in_proj.weight", tuple(f"mixer.{n}.kernel" for n in INPUTS)),
            convolution("mixer.conv", f"{stem}.conv1d.weight", block.mixer.kernel_size),
        )


def convolution(leaf: str, tensor: str, taps: int) -> Rule:
    """Of a short convolution, which torch keeps as [C, 1, taps]."""
    return Rule(tensor, (leaf,), turned=True, shape=(-1, 1, taps))
