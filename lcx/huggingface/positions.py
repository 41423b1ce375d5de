"""Position schemes from and to the `config.json` of Hugging Face models.

Two spellings are in use: `rope_parameters`, one dict with everything (transformers 5), and
`rope_theta` beside `rope_scaling` (before). Both are read, and either is written. What is not known
is refused: a key that is ignored would be a model that answers, but not as it was trained.
"""

from collections.abc import Mapping
from typing import Any, Literal

from lcx.positions.alibi import ALiBi
from lcx.positions.dynamic import DynamicNTK, LongRoPE
from lcx.positions.learned import Learned
from lcx.positions.none import NoPE
from lcx.positions.protocol import PositionScheme
from lcx.positions.rope import RoPE
from lcx.positions.scaling import NTK, Llama3, PositionInterpolation, Scaling, YaRN

Config = Mapping[str, Any]
Spelling = Literal["rope_parameters", "rope_scaling"]

HALVES = frozenset(
    "llama mistral ministral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 phi phi3 "
    "olmo olmo2 olmoe falcon gpt_neox stablelm starcoder2 persimmon smollm3 gpt_oss granite "
    "recurrent_gemma qwen3_next".split()
)
NEIGHBOURS = frozenset("cohere glm glm4 helium".split())
"""Families with RoPE, by `model_type`, and which features they pair: no config says so."""

FRACTIONS = {
    **dict.fromkeys(("phi", "persimmon", "glm", "glm4", "recurrent_gemma"), 0.5),
    **dict.fromkeys(("stablelm", "gpt_neox", "qwen3_next"), 0.25),
}
"""Which part of a head turns where a config does not say."""
THETAS = {"llama": 1e4, "falcon": 1e4}
"""As the first models of these families, whose configs say no theta."""
REFUSED = (
    *("rope_condense_ratio", "rope_ratio", "rope_pct", "rotary_dim"),
    "dual_chunk_attention_config",
)
"""Keys that change positions and that are not understood here."""

_ORIGINAL = "original_max_position_embeddings"
_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "truncate"},
    "llama3": {"factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"},
    "longrope": {"short_factor", "long_factor", _ORIGINAL, "factor", "attention_factor"},
}
"""What each kind may say, beside the common keys."""
_ALONE = {"phi3": ("longrope",), "recurrent_gemma": ()}
"""Families that have but these kinds, beside RoPE itself."""
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_SYNONYMS = {"su": "longrope"}


def read_positions(config: Config) -> PositionScheme | Learned:
    """The scheme of a model, from its config. Raises ValueError where it says what we do not know.

    `Learned` belongs in `LM.positions`; every other scheme in the mixers.
    """
    match kind := config.get("model_type"):
        case "bloom":
            return ALiBi()
        case "mpt":
            attention = config.get("attn_config") or {}
            if not attention.get("alibi", True):
                raise ValueError("attn_config.alibi is false: an MPT without ALiBi is not known")
            return ALiBi(bias_max=float(attention.get("alibi_bias_max", 8)))
        case "falcon" if config.get("alibi"):
            return ALiBi(scale=_head_width(config) ** -0.5)
        case "gpt2":
            return Learned(_needed(config, "n_positions", "gpt2"))
    if kind not in HALVES | NEIGHBOURS:
        raise ValueError(
            f"model_type {kind!r}: how it pairs the features that turn is not known. Known are "
            f"bloom, mpt, gpt2, {', '.join(sorted(HALVES | NEIGHBOURS))}"
        )
    layers = config.get("no_rope_layers")
    # the interval is what the layers follow from, where they are not said
    unknown = REFUSED if layers else (*REFUSED, "no_rope_layer_interval")
    if said := [name for name in unknown if config.get(name) is not None]:
        raise ValueError(f"the config says {', '.join(said)}, which is not known here")
    if kind == "smollm3" and not layers:
        raise ValueError("smollm3 needs no_rope_layers: without, it gives some layers no position")
    if layers and not any(layers):
        return NoPE()
    if layers and not all(layers):
        raise ValueError(
            "no_rope_layers: some layers have a position and others none, which is a pattern of "
            "blocks, RoPE() in some and NoPE() in others"
        )
    return _rope(config, kind in NEIGHBOURS)


def write_positions(
    position: PositionScheme | Learned, config: Config, spelling: Spelling = "rope_parameters"
) -> dict[str, Any]:
    """A copy of a config that says this scheme, in place of what it said of positions.

    `config` says which family (`model_type`) and how wide the heads are. Raises ValueError for a
    scheme that has no spelling there.
    """
    if spelling not in ("rope_parameters", "rope_scaling"):
        raise ValueError(f"spelling {spelling!r}: use 'rope_parameters' or 'rope_scaling'")
    kind = config.get("model_type")
    gone = {"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "alibi"}
    gone |= {"no_rope_layers", "rotary_pct", "rotary_emb_base", _ORIGINAL}
    new = {name: value for name, value in config.items() if name not in gone}
    match position:
        case Learned(length, factor) if kind == "gpt2" and factor == 1:
            new.pop("max_position_embeddings", None)  # another name of the same
            return new | {"n_positions": length}
        case ALiBi(bias_max, scale) if kind == "mpt" and scale == 1:
            whole = int(bias_max) if bias_max == int(bias_max) else bias_max  # an int, there
            attention = {"alibi": True, "alibi_bias_max": whole}
            return new | {"attn_config": (config.get("attn_config") or {}) | attention}
        case ALiBi() if kind == "bloom" and position == ALiBi():
            return new
        case ALiBi() if kind == "falcon" and position == ALiBi(scale=_head_width(config) ** -0.5):
            return new | {"alibi": True}
        case NoPE() if kind == "smollm3":
            layers = _needed(config, "num_hidden_layers", "no_rope_layers")
            return new | {"no_rope_layers": [0] * layers}
        case RoPE() if kind in HALVES | NEIGHBOURS:
            if position.interleaved != (kind in NEIGHBOURS):
                pairs = "neighbours" if kind in NEIGHBOURS else "halves"
                raise ValueError(
                    f"{kind} pairs {pairs}, so RoPE(interleaved={kind in NEIGHBOURS}) fits it"
                )
            return new | _spelled(position, config, spelling)
    raise ValueError(
        f"{position} has no spelling in a config of model_type {kind!r}; "
        "RoPE fits most, ALiBi bloom, mpt and falcon (with its scale), NoPE smollm3, Learned gpt2"
    )


def _rope(config: Config, interleaved: bool) -> RoPE:
    said = _said(config)
    kind = said.get("rope_type") or said.get("type") or "default"
    kind = _SYNONYMS.get(kind, kind)
    if kind not in _KEYS:
        raise ValueError(f"rope_type {kind!r} is not known; known are {', '.join(_KEYS)}")
    if unknown := said.keys() - _KEYS[kind] - _COMMON:
        allowed = ", ".join(sorted(_KEYS[kind])) or "nothing else"
        raise ValueError(
            f"rope_type {kind!r} with {', '.join(sorted(unknown))}: it may say {allowed}"
        )
    family = config["model_type"]
    theta = _agreed(said, config, "rope_theta", "rotary_emb_base")
    theta = THETAS.get(family) if theta is None else theta
    if theta is None:
        raise ValueError("the config says no rope_theta")
    fraction = _agreed(said, config, "partial_rotary_factor", "rotary_pct")
    fraction = FRACTIONS.get(family, 1.0) if fraction is None else fraction
    position = RoPE(theta, _scaling(kind, said, config), fraction, interleaved)
    position.check(_head_width(config))
    return position


def _agreed(said: Config, config: Config, *names: str) -> float | None:
    """What the dict or the config itself says under one of these names."""
    both = (said, config)
    found = {f"{n}={d[n]}": _number(d, n) for d in both for n in names if d.get(n) is not None}
    if len(set(found.values())) > 1:
        raise ValueError(f"the config says different things: {', '.join(found)}")
    return next(iter(found.values()), None)


def _number(said: Config, name: str) -> float:
    if isinstance(said[name], bool) or not isinstance(said[name], int | float):
        raise ValueError(f"{name} must be a number, not {said[name]!r}")
    return float(said[name])


def _said(config: Config) -> dict[str, Any]:
    """What a config says of RoPE in its dict, of whichever spelling."""
    found = {n: config[n] for n in ("rope_parameters", "rope_scaling") if config.get(n)}
    if len(found) == 2 and found["rope_parameters"] != found["rope_scaling"]:
        raise ValueError("rope_parameters and rope_scaling say different things")
    said = next(iter(found.values()), {})
    if not isinstance(said, Mapping):
        raise ValueError(f"{next(iter(found))} must be a dict, not {said!r}")
    if any(isinstance(value, Mapping) for value in said.values()):
        kinds = ", ".join(said)
        raise ValueError(f"the layers have different positions ({kinds}): read each one's dict")
    return {name: value for name, value in said.items() if value is not None}


def _scaling(kind: str, said: Config, config: Config) -> Scaling | None:
    def number(name: str, default: float | None = None) -> float:
        if default is not None and name not in said:
            return default
        _needed(said, name, f"rope_type {kind!r}")
        return _number(said, name)

    def original() -> int:
        if (found := _agreed(said, config, _ORIGINAL)) is None:
            raise ValueError(
                f"rope_type {kind!r} needs {_ORIGINAL}, and the config does not say it"
            )
        return int(found)

    attention = number("attention_factor") if "attention_factor" in said else None
    match kind:
        case "linear":
            return PositionInterpolation(number("factor"))
        case "dynamic":
            longest = _needed(config, "max_position_embeddings", "rope_type 'dynamic'")
            return DynamicNTK(int(longest), number("factor"))
        case "yarn":
            return YaRN(
                number("factor"),
                original(),
                number("beta_fast", 32.0),
                number("beta_slow", 1.0),
                attention,
                said.get("truncate", True),
            )
        case "llama3":
            low, high = number("low_freq_factor"), number("high_freq_factor")
            return Llama3(number("factor"), original(), low, high)
        case "longrope":
            short, long = (
                tuple(map(float, _needed(said, name, "rope_type 'longrope'")))
                for name in ("short_factor", "long_factor")
            )
            if "factor" in said:
                factor = number("factor")
            else:
                longest = _needed(config, "max_position_embeddings", "rope_type 'longrope'")
                factor = longest / original()
            return LongRoPE(short, long, original(), factor, attention)
    return None


def _spelled(position: RoPE, config: Config, spelling: Spelling) -> dict[str, Any]:
    """The keys that say a RoPE."""
    theta, top = position.theta, {}
    match position.scaling:
        case None:
            more = {"rope_type": "default"}
        case NTK(factor):  # no kind of its own: a larger base
            width = position.rotary_width(_head_width(config))
            theta *= factor ** (width / max(width - 2, 1))
            more = {"rope_type": "default"}
        case PositionInterpolation(factor):
            more = {"rope_type": "linear", "factor": factor}
        case DynamicNTK(original, factor):
            more = {"rope_type": "dynamic", "factor": factor}
            top = {"max_position_embeddings": original}
        case YaRN(factor, original, fast, slow, attention, truncate):
            more = {"rope_type": "yarn", "factor": factor, _ORIGINAL: original}
            more |= {"beta_fast": fast, "beta_slow": slow, "truncate": truncate}
            more |= {} if attention is None else {"attention_factor": attention}
        case Llama3(factor, original, low, high):
            more = {"rope_type": "llama3", "factor": factor, _ORIGINAL: original}
            more |= {"low_freq_factor": low, "high_freq_factor": high}
        case LongRoPE(short, long, original, factor, attention):
            more = {"rope_type": "longrope", "factor": factor, _ORIGINAL: original}
            more |= {"short_factor": list(short), "long_factor": list(long)}
            top = {_ORIGINAL: original}
            if config.get("max_position_embeddings") is None:  # older code has the factor from it
                top |= {"max_position_embeddings": round(factor * original)}
            more |= {} if attention is None else {"attention_factor": attention}
        case other:
            raise ValueError(f"{other} has no rope_type; those there are: {', '.join(_KEYS)}")
    family = config["model_type"]
    if more["rope_type"] not in ("default", *_ALONE.get(family, _KEYS)):
        kinds = " but longrope" if family == "phi3" else ""
        raise ValueError(f"{family} has no rope_type{kinds}: not {position.scaling}")
    if family == "smollm3":  # whose default is another
        top |= {"no_rope_layers": [1] * _needed(config, "num_hidden_layers", "no_rope_layers")}
    usual = position.fraction == FRACTIONS.get(family, 1.0)
    partial = {} if usual else {"partial_rotary_factor": position.fraction}
    if spelling == "rope_parameters":
        return top | {"rope_parameters": more | partial | {"rope_theta": theta}}
    default = more == {"rope_type": "default"} and family != "gpt_oss"  # which has YaRN otherwise
    scaling = None if default else more
    if family == "gpt_neox":
        names = {"rotary_pct": position.fraction, "rotary_emb_base": theta}
        return top | names | {"rope_scaling": scaling}
    return top | partial | {"rope_theta": theta, "rope_scaling": scaling}


def _head_width(config: Config) -> int:
    if config.get("head_dim"):
        return config["head_dim"]
    heads = _needed(config, "num_attention_heads", "positions")
    return _needed(config, "hidden_size", "positions") // heads


def _needed(said: Config, name: str, where: str) -> Any:
    if said.get(name) is None:
        raise ValueError(f"{where} needs {name}, and the config does not say it")
    return said[name]
