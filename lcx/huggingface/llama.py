"""Llama 2 and 3, Mistral and Ministral; the parts that Qwen, Phi and others share with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lcx.block import Block
from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.huggingface.positions import read_positions, write_positions
from lcx.layers import RMSNorm, SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.positions import PositionScheme, RoPE
from lcx.sparsity import Full, Sparsity, Window

EMBEDDING = {"embed.embedding": "model.embed_tokens.weight", "norm.scale": "model.norm.weight"}
NORMS = {
    "mixer_norm.scale": "model.layers.{}.input_layernorm.weight",
    "channel_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
}
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
QK_NORMS = {
    f"mixer.{x}_norm.scale": f"model.layers.{{}}.self_attn.{x}_norm.weight" for x in ("q", "k")
}
GATED = {x: f"{x}_proj" for x in ("gate", "up", "down")}
WHOLE = ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma2", "falcon")
"""Families that turn all of a head, whatever their configs say."""


class Llama:
    """Llama, Mistral (each layer a window), and Ministral (some layers a window)."""

    kinds: Sequence[str] = ("llama", "mistral", "ministral")
    heads = ("lm_head.weight",)

    def read(self, config: Config) -> LM:
        kind = config.said["model_type"]
        config.only(hidden_act="silu")
        biases = config.flag("attention_bias", False)
        channel = SwiGLU(config.count("intermediate_size"), config.flag("mlp_bias", False))
        if kind == "llama":  # whose code in transformers reads neither
            config.only(sliding_window=None, layer_types=None)
        mixer = replace(attention(config), biases=("q", "k", "v", "out") if biases else ())
        block = Block(mixer, channel, RMSNorm(config.number("rms_norm_eps", 1e-6)))
        known = windowed(block, window(config))
        pattern, repeats = layers(config, known, lambda layer: [*known][-1])
        return around(config, pattern, repeats)

    def write(self, model: LM) -> dict[str, Any] | None:
        if (parts := sublayers(model)) is None:
            return None
        mixer, channel = parts
        seen = sparsities(model)
        windows = [s for s in seen if isinstance(s, Window)]
        kind = "llama" if not windows else "mistral" if len(windows) == len(seen) else "ministral"
        own: dict[str, Any] = {}
        if kind == "llama":
            own |= {"attention_bias": bool(mixer.biases), "mlp_bias": channel.bias}
        else:
            own |= {"sliding_window": windows[0].size}
        if kind == "ministral":
            own |= {"layer_types": layer_types(model)}
        return written(kind, model, mixer, channel.width(model.width), own)

    def around(self, model: LM) -> tuple[Rule, ...]:
        return rules(EMBEDDING)

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        found = NORMS | projections(block.mixer)
        biased = isinstance(block.channel, SwiGLU) and block.channel.bias
        return rules(found | gated(biased))


def projections(mixer: Any, stem: str = "model.layers.{}.self_attn") -> dict[str, str]:
    """Of attention: one tensor each."""
    found = {}
    for ours, theirs in ATTENTION.items():
        found[f"mixer.{ours}.kernel"] = f"{stem}.{theirs}.weight"
        if ours in mixer.biases:
            found[f"mixer.{ours}.bias"] = f"{stem}.{theirs}.bias"
    return found | (QK_NORMS if mixer.qk_norm else {})


def gated(bias: bool) -> dict[str, str]:
    """Of a gated MLP: one tensor each."""
    found = {}
    for ours, theirs in GATED.items():
        found[f"channel.{ours}.kernel"] = f"model.layers.{{}}.mlp.{theirs}.weight"
        if bias:
            found[f"channel.{ours}.bias"] = f"model.layers.{{}}.mlp.{theirs}.bias"
    return found


def attention(config: Config) -> SoftmaxAttention:
    """Grouped attention under the config's positions."""
    heads = config.count("num_attention_heads")
    width = config.count("hidden_size")
    own = config.get("head_dim")
    if own is None and width % heads:
        raise ValueError(f"{config.where}: {heads} heads do not divide hidden_size {width}")
    return SoftmaxAttention(
        heads=heads,
        kv_heads=config.count("num_key_value_heads", heads),
        position=position(config),
        head_width=None if own is None or own * heads == width else config.count("head_dim"),
    )


def position(config: Config) -> PositionScheme:
    """The mixers' scheme."""
    config.without(
        *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"),
        "original_max_position_embeddings",
    )
    scheme, kind = read_positions(config.said), config.said["model_type"]
    if isinstance(scheme, RoPE) and scheme.fraction != 1 and kind in WHOLE:
        raise ValueError(
            f"{config.where}: partial_rotary_factor is {scheme.fraction}, and {kind} turns all of "
            "a head"
        )
    if not isinstance(scheme, PositionScheme):
        raise ValueError(f"{config.where}: its positions are {scheme}, which are no mixer's")
    return scheme


def sublayers(model: LM) -> tuple[SoftmaxAttention, SwiGLU] | None:
    """Of the first block, where it is one of Llama's kind."""
    match model.pattern[0]:
        case Block(SoftmaxAttention() as mixer, SwiGLU() as channel, RMSNorm()):
            return mixer, channel
    return None


def window(config: Config) -> int | None:
    """The size of windows; None: the config says none."""
    return config.count("sliding_window") if "sliding_window" in config else None


def windowed(block: Block, size: int | None) -> dict[str, Block]:
    """The block by what transformers calls its layers: over all keys, and over a window."""
    mixer: Any = block.mixer
    found = {"full_attention": replace(block, mixer=replace(mixer, sparsity=Full()))}
    if size is None:
        return found
    return found | {
        "sliding_attention": replace(block, mixer=replace(mixer, sparsity=Window(size)))
    }


def layers(
    config: Config, known: Mapping[str, Block], usual: Callable[[int], str]
) -> tuple[tuple[Block, ...], int]:
    """The pattern of blocks and its repeats, by `layer_types`; where it is not said, by `usual`."""
    count = config.count("num_hidden_layers")
    types = config.get("layer_types") or [usual(layer) for layer in range(count)]
    if len(types) != count or not set(types) <= known.keys():
        raise ValueError(
            f"{config.where}: layer_types has to name one of {', '.join(known)} for each of the "
            f"{count} layers, and is {types}"
            + (", with no sliding_window" if len(known) == 1 else "")
        )
    if "sliding_attention" not in types:  # what is said of windows is said of no layer
        config.without("use_sliding_window", "sliding_window")
    pattern = period(tuple(known[kind] for kind in types))
    return pattern, count // len(pattern)


def period(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The shortest part that, repeated, is all of them."""
    count = len(blocks)
    sizes = (n for n in range(1, count + 1) if count % n == 0)
    return next(blocks[:n] for n in sizes if blocks[:n] * (count // n) == blocks)


def around(config: Config, pattern: tuple[Block, ...], repeats: int, tied: bool = False) -> LM:
    """The model around its blocks; tied: where the config does not say."""
    return LM(
        vocab=config.count("vocab_size"),
        width=config.count("hidden_size"),
        pattern=pattern,
        repeats=repeats,
        tied=config.flag("tie_word_embeddings", tied),
        norm=pattern[0].norm,
    )


def sparsities(model: LM) -> list[Sparsity | None]:
    """Of each place in the pattern."""
    return [getattr(block.mixer, "sparsity", None) for block in model.pattern]


def layer_types(model: LM) -> list[str]:
    """As transformers calls the layers."""
    names = [
        "sliding_attention" if isinstance(s, Window) else "full_attention"
        for s in sparsities(model)
    ]
    return names * model.repeats


def written(
    kind: str, model: LM, mixer: SoftmaxAttention, hidden: int, own: dict[str, Any]
) -> dict[str, Any]:
    """A config in Llama's words."""
    norm = model.norm
    config = {
        "model_type": kind,
        "vocab_size": model.vocabulary,
        "hidden_size": model.width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(model.pattern) * model.repeats,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.groups,
        "head_dim": mixer.head_width or model.width // mixer.heads,
        "hidden_act": "silu",
        "rms_norm_eps": norm.eps,
        "tie_word_embeddings": model.tied,
        **own,
    }
    return write_positions(mixer.position, config, "rope_scaling")
