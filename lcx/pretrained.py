"""Weights of published models: a folder as Hugging Face has them, of the Llama family."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lcx.block import Block
from lcx.layers import RMSNorm, SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM, parameters
from lcx.positions import PositionScheme
from lcx.positions.huggingface import read_positions
from lcx.types import Params

FAMILIES = ("llama", "mistral")

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
    """The weights of a published model: a folder with `config.json` and `*.safetensors`.

    Of the families in FAMILIES, without biases and without a window. An experiment begins from it
    by `init_from=Pretrained(folder)`; its model is `Pretrained(folder).model()`, or one whose
    parameters have the same shapes, under another position scheme for instance.
    """

    folder: str

    def model(self, position: PositionScheme | None = None) -> LM:
        """The architecture that the config tells, under its own positions or the ones given.

        Raises FileNotFoundError without a config, ValueError for what lcx's Llama does not have.
        """
        config = self._config
        self._refuse_what_differs(config)
        norm = RMSNorm(eps=config["rms_norm_eps"])
        heads = config["num_attention_heads"]
        groups = config.get("num_key_value_heads") or heads
        mixer = SoftmaxAttention(heads=heads, kv_heads=groups, position=position or self.position)
        return LM(
            vocab=config["vocab_size"],
            width=config["hidden_size"],
            pattern=(Block(mixer, SwiGLU(config["intermediate_size"]), norm),),
            repeats=config["num_hidden_layers"],
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
    def trained_length(self) -> int:
        """The longest text that the config says the model reads, in tokens."""
        return int(self._config["max_position_embeddings"])

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
        path = self._path / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{self}: no {path}")
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{self}: {path} is no JSON: {error}") from error
        needed = (
            "model_type vocab_size hidden_size intermediate_size num_hidden_layers "
            "num_attention_heads rms_norm_eps max_position_embeddings"
        )
        if missing := [name for name in needed.split() if name not in config]:
            raise ValueError(f"{self}: {path} does not say {', '.join(missing)}")
        return config

    @property
    def _path(self) -> Path:
        return Path(self.folder).expanduser()

    def _refuse_what_differs(self, config: dict[str, Any]) -> None:
        if config.get("model_type") not in FAMILIES:
            kind = config.get("model_type")
            raise ValueError(f"{self}: model_type {kind!r}; known are {', '.join(FAMILIES)}")
        width = config["hidden_size"] // config["num_attention_heads"]
        ours = {
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "sliding_window": None,
            "head_dim": width,
            "quantization_config": None,
        }
        for name, fits in ours.items():
            if config.get(name) not in (None, fits):
                raise ValueError(f"{self}: {name} is {config[name]}; only {fits} is supported")

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Which file each tensor lies in."""
        from safetensors import safe_open

        paths = sorted(self._path.glob("*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{self}: no *.safetensors in {self._path}")
        found = {}
        for path in paths:
            with safe_open(path, framework="flax") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found

    def _shape(self, name: str) -> tuple[int, ...]:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="flax") as file:
            return tuple(file.get_slice(name).get_shape())

    def _tensor(self, name: str) -> jax.Array:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="flax") as file:
            return file.get_tensor(name)


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
