"""LoRA as peft's folders have it: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lcx.adapters import LoRA
from lcx.adapters.lora import A, B
from lcx.cache import Digest
from lcx.huggingface.export import check_empty, family_of
from lcx.huggingface.peft_prompts import (
    CONFIG,
    PREFIXES,
    PROMPTS,
    WEIGHTS,
    PromptFolder,
    saved_tensors,
)
from lcx.huggingface.tensors import Index, Tensor, tensors
from lcx.model import LM
from lcx.types import Leaves

PREFIX = "base_model.model."
"""Before every name in the file: of peft's two wrappers."""
TOLD = "peft_type r lora_alpha use_rslora fan_in_fan_out ensure_weight_tying".split()
"""What is read of a config."""
UNSAID = """
auto_mapping base_model_name_or_path exclude_modules inference_mode init_lora_weights layers_pattern
layers_to_transform lora_dropout megatron_core modules_to_save peft_version qalora_group_size
revision target_modules task_type
""".split()
"""What changes nothing that a trained adapter computes: which modules it has, the tensors say."""


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA that peft has saved, to be added to published tensors. Messages begin with `name`."""

    path: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """Raises ValueError for anything in it that lcx has not."""
        path = self.path / CONFIG
        said = json.loads(path.read_text(encoding="utf-8"))
        nothing = (None, False, {}, [], "none")
        more = {k: v for k, v in said.items() if k not in (*TOLD, *UNSAID) and v not in nothing}
        if more:
            listed = ", ".join(f"{key}={value!r}" for key, value in more.items())
            raise ValueError(f"{self.name}: {path} has {listed}, which lcx does not do")
        return said

    @cached_property
    def scale(self) -> float:
        """What the low-rank products are multiplied by."""
        said = self.config
        stable = bool(said.get("use_rslora"))
        return LoRA(said["r"], float(said["lora_alpha"]), rank_stabilised=stable).scale

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """By the names that the base has for what they belong to."""
        saved = saved_tensors(self.path, self.name)
        return {name.removeprefix(PREFIX): tensor for name, tensor in saved.items()}

    def check(self, model: LM, expected: list[Tensor], heads: Sequence[str]) -> None:
        """Raise ValueError for what has no place in a model with these published tensors.

        heads: what the head's is called; a tied model has none of its own.
        """
        shapes = {tensor.name: tensor.shape for tensor in expected}
        if model.tied:
            table = next(t for t in expected if t.parts[0][0] == "embed.embedding")
            self._check_tied(heads, table.name)
            shapes |= dict.fromkeys(heads, table.shape)
        rank = self.config["r"]
        for name, tensor in self.tensors.items():
            module = name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
            there = shapes.get(f"{module}.weight" if module != name else name)
            if module != name and there is not None:
                out, inputs = there[::-1] if self.config.get("fan_in_fan_out") else there
                there = (rank, inputs) if name.endswith("lora_A.weight") else (out, rank)
            if tensor.shape != there:
                raise ValueError(
                    f"{self.name}: {name} in {self.path} is {tensor.shape}, and the model "
                    f"{'has no place for it' if there is None else f'asks for {there}'}"
                )

    def _check_tied(self, heads: Sequence[str], table: str) -> None:
        """Raise ValueError where the embedding and the head, which are one, are two here."""
        here = {n: t for n, t in self.tensors.items() if n == table or n in heads}
        if not here:
            return
        first = here.get(table)
        if first is None or not all(np.array_equal(first, other) for other in here.values()):
            raise ValueError(
                f"{self.name}: {' and '.join(here)} in {self.path} are not one and the same, as "
                "the embedding and the head of the model are"
            )
        if not self.config.get("ensure_weight_tying"):
            raise ValueError(
                f"{self.name}: {table} in {self.path} is a copy of the embedding, which the tied "
                "head does not share; peft's ensure_weight_tying keeps them one"
            )

    def applied(self, name: str, tensor: np.ndarray, index: Index | None) -> np.ndarray:
        """A published tensor, or what is at an index of it, with what the adapter adds; fp32."""
        at = (...,) if index is None else index
        if name in self.tensors:
            return self.tensors[name][at]
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.weight" not in self.tensors:
            return tensor
        a, b = (self.tensors[f"{module}.lora_{x}.weight"].astype(np.float32) for x in "AB")
        update = (self.scale * (b @ a)).astype(np.float32)
        update = update.T if self.config.get("fan_in_fan_out") else update
        return tensor.astype(np.float32) + update[at]

    def fingerprint(self) -> str:
        """A digest of the config's numbers and of all tensors."""
        digest = Digest(*(f"{key}={self.config.get(key)}" for key in TOLD))
        for name, tensor in sorted(self.tensors.items()):
            digest.add(name, str(tensor.dtype), str(tensor.shape), tensor.tobytes())
        return str(digest)


def adapter_at(path: Path, name: str) -> PeftFolder | PromptFolder:
    """What lies in a folder. Raises FileNotFoundError without a config, ValueError for a method
    that is not read."""
    config = path / CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"{name}: no {config}")
    kind = json.loads(config.read_text(encoding="utf-8")).get("peft_type")
    if kind in (*PROMPTS, *PREFIXES):
        return PromptFolder(path, name)
    if kind != "LORA":
        known = "LORA, " + ", ".join((*PROMPTS, *PREFIXES))
        raise ValueError(f"{name}: {config} is a {kind}; read are {known}")
    return PeftFolder(path, name)


def write_adapter(folder: Path, model: LM, tune: LoRA, trained: Leaves, base: str | None) -> None:
    """What was trained, as a folder that peft reads beside a model of the family that `model` is.

    base: the folder or the name of that model. Raises ValueError for a model that no family has, or
    whose family has several projections in one tensor; FileExistsError for a folder that holds
    something.
    """
    from safetensors.numpy import save_file

    family, _ = family_of(model)
    check_empty(folder)
    found: dict[str, np.ndarray] = {}
    targets, saved, turned = [], [], True
    for tensor in tensors(family, model):
        module, parts = tensor.name.removesuffix(".weight"), tensor.parts
        stems = [path.removesuffix(".kernel") for path, _ in parts]
        if any(f"{stem}.{A}" in trained for stem in stems):
            if len(parts) > 1 or tensor.rule.shape is not None:
                raise ValueError(
                    f"{tensor.name} is {' and '.join(stems)} in one, which have factors of their "
                    "own here; export the merged model instead"
                )
            layer = parts[0][1]
            for ours, theirs in ((A, "lora_A"), (B, "lora_B")):
                factor = np.asarray(trained[f"{stems[0]}.{ours}"][...])
                factor = factor if layer is None else factor[layer]
                found[f"{PREFIX}{module}.{theirs}.weight"] = np.ascontiguousarray(factor.T)
            targets.append(module)
            turned = tensor.turned
        elif any(path in trained for path, _ in parts):
            own = ((np.asarray(trained[path][...]), layer) for path, layer in parts)
            whole = [array if layer is None else array[layer] for array, layer in own]
            found[f"{PREFIX}{tensor.name}"] = tensor.join(whole)
            saved.append(tensor.name.rpartition(".")[0])
    if model.tied and tune.embeddings:  # peft keeps both, and ties them again
        table = next(t.name for t in tensors(family, model) if t.parts[0][0] == "embed.embedding")
        found[f"{PREFIX}{family.heads[0]}"] = found[f"{PREFIX}{table}"].copy()
    alpha = tune.scale * tune.rank ** (0.5 if tune.rank_stabilised else 1)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": tune.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": tune.rank_stabilised,
        "target_modules": targets,
        "modules_to_save": list(dict.fromkeys(saved)) or None,
        "ensure_weight_tying": model.tied and tune.embeddings,
        "fan_in_fan_out": not turned,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(found, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
