"""RWKV-4 to 7 as their authors publish them: a state dict alone, whose names and shapes tell all.

The names are those of the modules in https://github.com/BlinkDL/RWKV-LM. There is no config: a
version is known by a tensor that earlier ones lack, sizes are axes of tensors, and nothing says
what all versions share, as the eps of norms.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcx.block import Block
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule
from lcx.huggingface.parts import norm
from lcx.layers import LayerNorm, RWKV6ChannelMix, RWKV7ChannelMix, RWKVChannelMix
from lcx.mixers import RWKV4, RWKV5, RWKV6, RWKV7
from lcx.model import LM

NORM = LayerNorm(1e-5)
"""Of every version; the norm over each head is the mixers' own."""
SIZES = {
    "vocab_size": ("emb.weight", 0),
    "hidden_size": ("emb.weight", 1),
    "intermediate_size": ("blocks.0.ffn.key.weight", 0),
}
"""Of a model, each as an axis of a tensor."""
VARIANTS = {
    ".att.time_state": "a learned initial state",
    ".att.gate_w1": "RWKV-6a: a gate of low rank",
    ".att.time_maa_rkvw_w1": "RWKV-6b or 6c: mixes of four, and no gate",
    ".qkv.": "RWKV-7b or 8: attention beside the recurrence",
    ".ffn.s_emb": "RWKV-7a: DeepEmbed, which multiplies channels by a vector of each token's",
    ".ffn.enn": "RWKV-8: DeepEmbed, which multiplies channels by a vector of each token's",
    ".tiny_q": "attention in one of the layers",
    "head_q.": "a head that copies from the text",
}
"""What is not read, by a part of a tensor's name."""


@dataclass(frozen=True)
class BlinkDL:
    """One version of RWKV."""

    name: str
    mark: str
    """A tensor of each block which versions before it lack."""
    mixer: type
    channel: type
    sizes: Mapping[str, tuple[str, int]]
    """Fields of the mixer, each as an axis of a tensor in the first block."""
    block: tuple[Rule, ...]

    heads = ("head.weight",)

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, config: Config) -> LM:
        mixer = self.mixer(**{name: config.count(name) for name in self.sizes})
        channel = self.channel(config.count("intermediate_size"))
        return LM(
            vocab=config.count("vocab_size"),
            width=config.count("hidden_size"),
            pattern=(Block(mixer, channel, NORM),),
            repeats=config.count("num_hidden_layers"),
            tied=False,
            norm=NORM,
            embed_norm=NORM,
        )

    def write(self, model: LM) -> dict[str, Any] | None:
        mixer, channel = model.pattern[0].mixer, model.pattern[0].channel
        if type(mixer) is not self.mixer or type(channel) is not self.channel:
            return None
        return {
            "model_type": self.name,
            "vocab_size": model.vocabulary,
            "hidden_size": model.width,
            "intermediate_size": channel.width(model.width),
            "num_hidden_layers": len(model.pattern) * model.repeats,
        } | {name: getattr(mixer, name) for name in self.sizes}

    def around(self, model: LM) -> tuple[Rule, ...]:
        return (
            Rule("emb.weight", ("embed.embedding",)),
            *norm("embed_norm", "blocks.0.ln0"),
            *norm("norm", "ln_out"),
        )

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        return self.block


def _table(
    plain: Mapping[str, str], vectors: Mapping[str, str], kernels: Mapping[str, str]
) -> tuple[Rule, ...]:
    """Rules of a block, from parameters to tensors.

    vectors: over channels, kept as [1, 1, D]. kernels: those that are kept as [in, out].
    """
    at = "blocks.{}."
    return (
        *norm("mixer_norm", f"{at}ln1"),
        *norm("channel_norm", f"{at}ln2"),
        *(Rule(at + tensor, (leaf,)) for leaf, tensor in plain.items()),
        *(Rule(at + tensor, (leaf,), shape=(1, 1, -1)) for leaf, tensor in vectors.items()),
        *(Rule(at + tensor, (f"{leaf}.kernel",), turned=False) for leaf, tensor in kernels.items()),
    )


def _alike(names: str, leaf: str, tensor: str) -> dict[str, str]:
    """Parameters and tensors of the same names."""
    return {leaf.format(name): tensor.format(name) for name in names.split()}


PROJECTIONS = {
    **_alike("receptance key value", "mixer.{}.kernel", "att.{}.weight"),
    "mixer.out.kernel": "att.output.weight",
    **_alike("key value", "channel.{}.kernel", "ffn.{}.weight"),
}
GATE = {"mixer.gate.kernel": "att.gate.weight"}
CHANNEL_GATE = {"channel.receptance.kernel": "ffn.receptance.weight"}
HEAD_NORM = {"mixer.scale": "att.ln_x.weight", "mixer.bias": "att.ln_x.bias"}

VERSIONS = (
    BlinkDL(
        name="RWKV-4",
        mark="att.time_decay",
        mixer=RWKV4,
        channel=RWKVChannelMix,
        sizes={},
        block=_table(
            plain=PROJECTIONS
            | CHANNEL_GATE
            | {"mixer.decay": "att.time_decay", "mixer.bonus": "att.time_first"},
            vectors=_alike("k v r", "mixer.mix_{}", "att.time_mix_{}")
            | _alike("k r", "channel.mix_{}", "ffn.time_mix_{}"),
            kernels={},
        ),
    ),
    BlinkDL(
        name="RWKV-5",
        mark="att.ln_x.weight",
        mixer=RWKV5,
        channel=RWKVChannelMix,
        sizes={"heads": ("att.time_decay", 0)},
        block=_table(
            plain=PROJECTIONS
            | GATE
            | CHANNEL_GATE
            | HEAD_NORM
            | {"mixer.decay": "att.time_decay", "mixer.bonus": "att.time_faaaa"},
            vectors=_alike("k v r g", "mixer.mix_{}", "att.time_mix_{}")
            | _alike("k r", "channel.mix_{}", "ffn.time_mix_{}"),
            kernels={},
        ),
    ),
    BlinkDL(
        name="RWKV-6",
        mark="att.time_maa_x",
        mixer=RWKV6,
        channel=RWKV6ChannelMix,
        sizes={
            "heads": ("att.time_faaaa", 0),
            "mix_rank": ("att.time_maa_w2", 1),
            "decay_rank": ("att.time_decay_w2", 0),
        },
        block=_table(
            plain=PROJECTIONS
            | GATE
            | CHANNEL_GATE
            | HEAD_NORM
            | {"mixer.bonus": "att.time_faaaa", "mixer.mix_out": "att.time_maa_w2"},
            vectors=_alike("x w k v r g", "mixer.mix_{}", "att.time_maa_{}")
            | _alike("k r", "channel.mix_{}", "ffn.time_maa_{}")
            | {"mixer.decay": "att.time_decay"},
            kernels={
                "mixer.mix_in": "att.time_maa_w1",
                "mixer.decay_in": "att.time_decay_w1",
                "mixer.decay_out": "att.time_decay_w2",
            },
        ),
    ),
    BlinkDL(
        name="RWKV-7",
        mark="att.r_k",
        mixer=RWKV7,
        channel=RWKV7ChannelMix,
        sizes={
            "heads": ("att.r_k", 0),
            "decay_rank": ("att.w2", 0),
            "rate_rank": ("att.a2", 0),
            "first_rank": ("att.v2", 0),
            "gate_rank": ("att.g2", 0),
        },
        block=_table(
            plain=PROJECTIONS | HEAD_NORM | {"mixer.bonus": "att.r_k"},
            vectors=_alike("r w k v a g", "mixer.mix_{}", "att.x_{}")
            | {
                "mixer.decay": "att.w0",
                "mixer.rate": "att.a0",
                "mixer.first": "att.v0",
                "mixer.removal": "att.k_k",
                "mixer.replaced": "att.k_a",
                "channel.mix": "ffn.x_k",
            },
            kernels={
                f"mixer.{ours}_low.{side}": f"att.{theirs}{number}"
                for ours, theirs in {"decay": "w", "rate": "a", "first": "v", "gate": "g"}.items()
                for number, side in ((1, "down"), (2, "up"))
            },
        ),
    ),
)
"""In their order."""


def told(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The config that the tensors of a state dict are, by their names and shapes.

    None: they are no RWKV's. Raises ValueError for what lcx does not have, and where a tensor that
    tells a size is missing.
    """
    found = [version for version in VERSIONS if f"blocks.0.{version.mark}" in shapes]
    if not found or "emb.weight" not in shapes:
        return None
    version = found[-1]
    for name in shapes:
        for part, what in VARIANTS.items():
            if part in name:
                raise ValueError(f"{name} is of {what}, which lcx does not read")
    if version.name == "RWKV-5":
        _check_5(shapes)
    own = {name: (f"blocks.0.{tensor}", axis) for name, (tensor, axis) in version.sizes.items()}
    layers = [int(n[1]) for name in shapes if (n := re.match(r"blocks\.(\d+)\.", name))]
    return {
        "model_type": version.name,
        "num_hidden_layers": 1 + max(layers),
        **{name: _axis(shapes, name, *at) for name, at in (SIZES | own).items()},
    }


def _check_5(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError for what went before RWKV-5.2, which is what its paper calls RWKV-5."""
    lacking = "which lcx does not have; RWKV-5.2 has"
    if "blocks.0.att.gate.weight" not in shapes:
        raise ValueError(f"there is no att.gate.weight: RWKV-5.0, {lacking} gates")
    decay = shapes.get("blocks.0.att.time_decay", ())
    if len(decay) < 2 or decay[1] == 1:
        raise ValueError(
            f"blocks.0.att.time_decay is {decay}, one decay a head: RWKV-5.1, {lacking} one for "
            "each feature of a head"
        )


def _axis(shapes: Mapping[str, tuple[int, ...]], size: str, tensor: str, axis: int) -> int:
    if tensor not in shapes:
        raise ValueError(f"there is no {tensor}, which tells {size}")
    if len(shapes[tensor]) <= axis:
        raise ValueError(f"{tensor} is {shapes[tensor]}, whose axis {axis} would be {size}")
    return shapes[tensor][axis]
