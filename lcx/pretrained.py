"""Weights of published models: a folder as Hugging Face has them, of the Llama family."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lcx.block import Block
from lcx.cache import Digest
from lcx.layers import RMSNorm, SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM, parameters
from lcx.paths import FilePath, resolved
from lcx.positions import PositionScheme
from lcx.positions.huggingface import read_positions
from lcx.sparsity import Full, Sparsity, Window
from lcx.types import Params

FAMILIES = ("llama", "mistral", "ministral")

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Transformers' names: of one file with all weights, and of what says which of several has what."""

NAMES = {
    "embed.embedding": "model.embed_tokens.weight",
    "mixer_norm.scale": "model.layers.{}.input_layernorm.weight",
    "mixer.q.kernel": "model.layers.{}.self_attn.q_proj.weight",
    "mixer.k.kernel": "model.layers.{}.self_attn.k_proj.weight",
    "mixer.v.kernel": "model.layers.{}.self_attn.v_proj.weight",
    "mixer.out.kernel": "model.layers.{}.self_attn.o_proj.weight",
    "channel_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "channel.gate.kernel": "model.layers.{}.mlp.gate_proj.weight",
    "channel.up.kernel": "model.layers.{}.mlp.up_proj.weight",
    "channel.down.kernel": "model.layers.{}.mlp.down_proj.weight",
    "norm.scale": "model.norm.weight",
    "head.kernel": "lm_head.weight",
}
"""From a parameter (of a block: without its place) to a tensor (its layer as `{}`)."""


@dataclass(frozen=True)
class Pretrained:
    """The weights of a published model: a folder with `config.json` and safetensors.

    Of the families in FAMILIES, without biases. An experiment begins from it by
    `init_from=Pretrained(folder)`; its model is `Pretrained(folder).model()`, or one whose
    parameters have the same shapes, under another position scheme for instance.

    Where there is a `model.safetensors.index.json`, it alone says which tensors are read, and from
    which files; elsewhere `model.safetensors` is read. No other file is, whatever lies beside them.
    """

    folder: FilePath

    def model(self, position: PositionScheme | None = None) -> LM:
        """The architecture that the config tells, under its own positions or the ones given.

        A Mistral's `sliding_window` is a `Window`, both of which count the token itself; where
        `layer_types` differ, the pattern is as long as it takes. Raises
        FileNotFoundError without a config, ValueError for what lcx's Llama does not have.
        """
        config = self._config
        self._refuse_what_differs(config)
        norm = RMSNorm(eps=config["rms_norm_eps"])
        heads = config["num_attention_heads"]
        groups = config.get("num_key_value_heads") or heads
        mixer = SoftmaxAttention(heads=heads, kv_heads=groups, position=position or self.position)
        channel, layers = SwiGLU(config["intermediate_size"]), self._sparsities(config)
        pattern = _period(layers)
        return LM(
            vocab=config["vocab_size"],
            width=config["hidden_size"],
            pattern=tuple(Block(replace(mixer, sparsity=s), channel, norm) for s in pattern),
            repeats=len(layers) // len(pattern),
            tied=config.get("tie_word_embeddings", False),
            norm=norm,
        )

    @property
    def position(self) -> PositionScheme:
        """The scheme that the config tells. Raises ValueError for one that is not known."""
        scheme = read_positions(self._config)
        if not isinstance(scheme, PositionScheme):
            raise ValueError(f"{self}: its positions are {scheme}, which are no mixer's")
        return scheme

    @property
    def trained_length(self) -> int | None:
        """The longest text that the config says the model reads, in tokens; None: it says none."""
        return self._config.get("max_position_embeddings")

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that the config says end a text."""
        said = self._config.get("eos_token_id")
        return () if said is None else tuple(said) if isinstance(said, list) else (said,)

    def fingerprint(self) -> str:
        """A digest of `config.json` and of all that is read of the weights.

        Two folders have the same one where the configs are the same bytes, and each tensor is read
        from a file of the same content, whatever the files are called. Reads all of them, about a
        second a GB. Raises as `check` does where a file is missing or is no safetensors.
        """
        self._json(self._config_path)  # says what is no folder of a model
        files = self._files
        digests = {path: _file_digest(path) for path in dict.fromkeys(files.values())}
        tensors = (part for name in sorted(files) for part in (name, digests[files[name]]))
        return str(Digest(_file_digest(self._config_path), *tensors))

    def check(self, model: LM) -> None:
        """Raise ValueError where the weights do not fit a model; reads their headers alone."""
        shapes = {name: self._shape(name) for name in self._files}
        unread = {name for name in shapes if not name.endswith("rotary_emb.inv_freq")}
        unread -= {"lm_head.weight"} if model.tied else set()
        for leaf, like in parameters(model).items():
            for name, shape in _tensors(model, leaf, like.shape):
                if shapes.get(name) != shape:
                    raise ValueError(
                        f"{self}: {name} is {shapes.get(name, 'absent')}, the model's {leaf} asks "
                        f"for {shape}"
                    )
                unread.discard(name)
        if unread:
            raise ValueError(f"{self}: {', '.join(sorted(unread)[:3])} have no place in the model")

    def load(self, model: LM) -> Params:
        """The parameters, in the model's dtype. Raises ValueError where they do not fit."""
        self.check(model)

        def fill(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
            leaf = _name(path)
            parts = [
                jnp.asarray(self._tensor(name), like.dtype)
                for name, _ in _tensors(model, leaf, like.shape)
            ]
            parts = [part.T for part in parts] if leaf.endswith("kernel") else parts
            return jnp.stack(parts) if leaf.startswith("blocks.") else parts[0]

        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return jax.tree_util.tree_map_with_path(fill, shapes)

    @cached_property
    def _config(self) -> dict[str, Any]:
        config = self._json(self._config_path)
        # of another family other keys are missing, which would say little
        kind = config.get("model_type")
        if kind not in FAMILIES:
            named = "names no model_type" if kind is None else f"is of model_type {kind!r}"
            known = ", ".join(FAMILIES)
            raise ValueError(f"{self}: {self._config_path} {named}; those known are {known}")
        counts = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
        ).split()
        if missing := [n for n in (*counts, "rms_norm_eps") if config.get(n) is None]:
            raise ValueError(f"{self}: {self._config_path} does not say {', '.join(missing)}")
        others = ("num_key_value_heads", "max_position_embeddings", "sliding_window")
        for name in (*counts, *(n for n in others if config.get(n) is not None)):
            value = config[name]
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"{self}: {self._config_path}: {name} is {value!r}, and has to be a whole "
                    "number from 1 on"
                )
        return config

    def _json(self, path: Path) -> dict[str, Any]:
        if self._path.is_file():
            raise ValueError(f"{self}: a file; it has to be the folder with config.json in it")
        if not path.is_file():
            raise FileNotFoundError(f"{self}: no {path}")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self}: {path} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(
                f"{self}: {path} holds a {type(found).__name__}, not an object {{...}}"
            )
        return found

    @property
    def _path(self) -> Path:
        return resolved(self.folder)

    @property
    def _config_path(self) -> Path:
        return self._path / "config.json"

    def _sparsities(self, config: dict[str, Any]) -> tuple[Sparsity, ...]:
        """Which keys each layer sees."""
        window, count = config.get("sliding_window"), config["num_hidden_layers"]
        known: dict[str, Sparsity] = {"full_attention": Full()}
        if window is not None:
            known["sliding_attention"] = Window(window)
        types = config.get("layer_types") or [list(known)[-1]] * count
        if len(types) != count or not set(types) <= known.keys():
            raise ValueError(
                f"{self}: layer_types has to name one of {', '.join(known)} for each of the "
                f"{count} layers, and is {types}, with a sliding_window of {window}"
            )
        return tuple(known[kind] for kind in types)

    def _refuse_what_differs(self, config: dict[str, Any]) -> None:
        width = config["hidden_size"] // config["num_attention_heads"]
        ours = {
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "head_dim": width,
            "quantization_config": None,
        }
        if config["model_type"] == "llama":  # whose code in transformers reads neither
            ours |= {"sliding_window": None, "layer_types": None}
        for name, fits in ours.items():
            if config.get(name) not in (None, fits):
                raise ValueError(f"{self}: {name} is {config[name]}; only {fits} is supported")

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Which file each tensor is read from."""
        index, single = self._path / INDEX, self._path / SINGLE
        if index.is_file():
            return self._indexed(index)
        if not single.is_file():
            raise FileNotFoundError(f"{self}: neither {INDEX} nor {SINGLE}{self._instead()}")
        with self._open(single) as file:
            return dict.fromkeys(file.keys(), single)

    def _indexed(self, index: Path) -> dict[str, Path]:
        """As an index says; every file that it names has to be there, with what it says of it."""
        names = self._json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise ValueError(f"{self}: {index} has no weight_map from tensors to files")
        for name in dict.fromkeys(names.values()):
            if not (path := self._path / name).is_file():
                raise FileNotFoundError(
                    f"{self}: {index.name} names {name}, and no such file is there"
                )
            with self._open(path) as file:
                held = set(file.keys())
            if lacking := [
                tensor for tensor, n in names.items() if n == name and tensor not in held
            ]:
                more = f" and {len(lacking) - 1} more" * (len(lacking) > 1)
                raise ValueError(f"{self}: {index.name} says that {name} holds {lacking[0]}{more}")
        return {tensor: self._path / name for tensor, name in names.items()}

    def _instead(self) -> str:
        """What a folder without the files that are read has, and what to do."""
        if others := sorted(p.name for p in self._path.glob("*.safetensors")):
            return (
                f" in {self._path}, which holds {others[0]} (of {len(others)}): fetch {INDEX}, or "
                f"call {SINGLE} the one file that has all weights"
            )
        pickled = sorted(p.name for s in ("bin", "pth", "pt") for p in self._path.glob(f"*.{s}"))
        if pickled:
            return (
                f" in {self._path}; {pickled[0]} is a pickle, which may run code, and is not read: "
                "convert it by transformers, "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another)"
            )
        return f" in {self._path}"

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="flax") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(
                f"{self}: {path} cannot be read ({error}): fetch the file again"
            ) from error

    def _shape(self, name: str) -> tuple[int, ...]:
        with self._open(self._files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def _tensor(self, name: str) -> jax.Array:
        with self._open(self._files[name]) as file:
            return file.get_tensor(name)


def _period(layers: tuple[Sparsity, ...]) -> tuple[Sparsity, ...]:
    """The shortest part that, repeated, is all of them."""
    count = len(layers)
    sizes = (n for n in range(1, count + 1) if count % n == 0)
    return next(layers[:n] for n in sizes if layers[:n] * (count // n) == layers)


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _tensors(model: LM, leaf: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of the tensors that a parameter is made of: one, or one a layer.

    Torch keeps kernels as [out, in].
    """
    layers = [0]
    if leaf.startswith("blocks."):
        _, place, leaf = leaf.split(".", 2)
        places = len(model.pattern)
        layers = list(range(int(place), places * model.repeats, places))
        shape = shape[1:]
    if leaf not in NAMES:
        raise ValueError(f"no published weights fit the parameter {leaf}")
    shape = shape[::-1] if leaf.endswith("kernel") else shape
    return [(NAMES[leaf].format(layer), shape) for layer in layers]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
