"""Tables of parts that families share, and their words for activations."""

from typing import Any

from lcx.huggingface.config import Config
from lcx.huggingface.family import Rule, rules
from lcx.layers.channels import Activation

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""By the words that configs have; the first of each is the one that is written."""
WORDS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
QKV = "mixer.q", "mixer.k", "mixer.v"


def linear(leaf: str, tensor: str, bias: bool, turned: bool | None = None) -> tuple[Rule, ...]:
    """A projection's weight, and its bias."""
    weight = Rule(f"{tensor}.weight", (f"{leaf}.kernel",), turned=turned)
    return (weight, Rule(f"{tensor}.bias", (f"{leaf}.bias",))) if bias else (weight,)


def norm(leaf: str, tensor: str, bias: bool = True) -> tuple[Rule, ...]:
    """A LayerNorm's scale, and its bias."""
    found = {f"{leaf}.scale": f"{tensor}.weight"}
    return rules(found | ({f"{leaf}.bias": f"{tensor}.bias"} if bias else {}))


def fused(tensor: str, bias: bool, groups: int = 1, turned: bool | None = None) -> tuple[Rule, ...]:
    """Queries, keys and values as one projection: Q|K|V, or so of each group of heads."""
    kernels, biases = (tuple(f"{x}.{kind}" for x in QKV) for kind in ("kernel", "bias"))
    weight = Rule(f"{tensor}.weight", kernels, groups, turned)
    return (weight, Rule(f"{tensor}.bias", biases, groups)) if bias else (weight,)


def check_heads(config: Config, width: int, heads: int) -> None:
    """Raise ValueError where heads do not divide the width: these families have no other."""
    if width % heads:
        raise ValueError(f"{config.where}: {heads} heads do not divide the width {width}")


def own_width(mixer: Any, width: int) -> None:
    """Raise ValueError for heads of another width than the model's by their number."""
    if mixer.head_width is not None and mixer.head_width * mixer.heads != width:
        raise ValueError(f"its heads are {width} / {mixer.heads} wide, not {mixer.head_width}")
