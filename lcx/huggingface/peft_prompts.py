"""Prompts and prefixes as peft's folders have them: one tensor, `prompt_embeddings`.

Of prompt tuning and P-tuning [M D], the embeddings themselves: peft saves what its network made of
them. Of prefix tuning [M 2LGK]: the keys and the values of each layer in turn, without positions.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lcx.adapters import PrefixTuning, PromptTuning
from lcx.adapters.prefix import KEYS, VALUES
from lcx.adapters.prompt import PROMPT
from lcx.cache import Digest
from lcx.huggingface.export import check_empty, family_of
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.sparsity import Full
from lcx.types import Leaves, Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PROMPTS, PREFIXES = ("PROMPT_TUNING", "P_TUNING"), ("PREFIX_TUNING",)
EMBEDDINGS = "prompt_embeddings"
TOLD = "peft_type num_virtual_tokens num_transformer_submodules modules_to_save".split()
"""What is read of a config. The rest says how the tensor was trained."""


def saved_tensors(folder: Path, name: str) -> dict[str, np.ndarray]:
    """What a folder holds, by peft's names. Raises FileNotFoundError, as `name`, without a file."""
    from safetensors.numpy import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no {path}")
    return load_file(path)


@dataclass(frozen=True)
class PromptFolder:
    """Virtual tokens that peft has saved, to stand before every document of a published model.

    Messages begin with `name`.
    """

    path: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """Raises ValueError for anything in it that lcx has not."""
        said = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        if said.get("modules_to_save"):
            raise ValueError(
                f"{self.name}: {self.path / CONFIG} has modules_to_save="
                f"{said['modules_to_save']!r}, which lcx does not read beside virtual tokens"
            )
        if said.get("num_transformer_submodules") not in (None, 1):
            raise ValueError(f"{self.name}: {self.path / CONFIG} is of an encoder and a decoder")
        return said

    @cached_property
    def tensor(self) -> np.ndarray:
        """[M ...], fp32."""
        found = saved_tensors(self.path, self.name)
        if list(found) != [EMBEDDINGS]:
            path = self.path / WEIGHTS
            raise ValueError(
                f"{self.name}: {path} holds {', '.join(sorted(found)[:3])}, not {EMBEDDINGS} alone"
            )
        return found[EMBEDDINGS].astype(np.float32)

    @property
    def tuning(self) -> PromptTuning | PrefixTuning:
        """The method of the same name here."""
        of = PrefixTuning if self.config["peft_type"] in PREFIXES else PromptTuning
        return of(self.config["num_virtual_tokens"])

    def check(self, model: LM) -> None:
        """Raise ValueError where the virtual tokens do not fit a model."""
        tuning = self.tuning
        try:
            tuning.trained(model)
            _check_dense(model)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        width = model.width
        if isinstance(tuning, PrefixTuning):
            width = 2 * model.dims.layers * math.prod(_keys(model, self.name))
        if self.tensor.shape != (tuning.tokens, width):
            raise ValueError(
                f"{self.name}: {EMBEDDINGS} in {self.path} is {self.tensor.shape}, and the model "
                f"asks for {(tuning.tokens, width)}"
            )

    def placed(self, model: LM, params: Params) -> Params:
        """The tree, with the virtual tokens before every document."""
        dtype = jnp.dtype(model.policy.params)
        added = {p: nnx.Param(jnp.asarray(a, dtype)) for p, a in self._added(model).items()}
        return self.tuning.place(model, params, added)

    def _added(self, model: LM) -> dict[str, np.ndarray]:
        if isinstance(self.tuning, PromptTuning):
            return {PROMPT: self.tensor}
        layers = self.tensor.reshape(len(self.tensor), -1, 2, *_keys(model, self.name))
        places = len(model.pattern)
        return {
            f"blocks.{place}.{name}": layers[:, place::places, i].swapaxes(0, 1)
            for place in range(places)
            for i, name in enumerate((KEYS, VALUES))
        }

    def fingerprint(self) -> str:
        """A digest of the config's facts and of the tensor."""
        digest = Digest(*(f"{key}={self.config.get(key)}" for key in TOLD))
        digest.add(str(self.tensor.shape), self.tensor.tobytes())
        return str(digest)


def _check_dense(model: LM) -> None:
    """Raise ValueError for a model whose tokens lose sight of what is far, as virtual ones are."""
    for block in model.pattern:
        if isinstance(block.mixer, SoftmaxAttention) and not isinstance(block.mixer.sparsity, Full):
            raise ValueError(
                f"peft's virtual tokens leave a {type(block.mixer.sparsity).__name__}, and here "
                "every token sees them: the model would compute something else. Folders are "
                "exchanged for models whose attention is Full()"
            )


def _keys(model: LM, name: str) -> tuple[int, int]:
    """G and K of all layers. Raises ValueError where layers have others, or none."""
    found = {
        (mixer.groups, mixer.key_width(model.dims)) if isinstance(mixer, SoftmaxAttention) else None
        for mixer in (block.mixer for block in model.pattern)
    }
    one = found.pop()
    if found or one is None:
        raise ValueError(
            f"{name}: peft has prefixes of models whose layers are all softmax attention with "
            "heads of keys alike; this one's are not"
        )
    return one


def write_prompt(
    folder: Path,
    model: LM,
    tune: PromptTuning | PrefixTuning,
    trained: Leaves,
    base: str | None,
) -> None:
    """What was trained, as a folder that peft reads beside a model of the family that `model` is.

    base: the folder or the name of that model. What a network makes of vectors is written, not the
    network. Raises ValueError for a model that no family has, or with a sparsity; FileExistsError
    for a folder that holds something.
    """
    from safetensors.numpy import save_file

    family_of(model)
    _check_dense(model)
    check_empty(folder)
    heads = 1
    if isinstance(tune, PrefixTuning):
        heads, _ = _keys(model, "PrefixTuning")
        with model.policy.precise():
            keys = tune.keys(model, trained)
        # [L 1 M G K] of each place -> [M, layer, keys or values, G, K]
        both = np.stack(
            [np.stack([np.asarray(a)[:, 0] for a in keys[p]]) for p in range(len(model.pattern))]
        )
        tensor = both.transpose(3, 2, 0, 1, 4, 5).reshape(tune.tokens, -1)
        width, kind = tensor.shape[1] // (2 * model.dims.layers), "PREFIX_TUNING"
    else:
        with model.policy.precise():
            tensor = np.asarray(tune.embeddings(trained))
        width, kind = model.width, "PROMPT_TUNING"
    config = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": tune.tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": model.dims.layers,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({EMBEDDINGS: np.ascontiguousarray(tensor)}, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
