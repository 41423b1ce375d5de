"""A trained model as a folder: for transformers, or as BlinkDL publishes his RWKV."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lcx import spec
from lcx.huggingface.blinkdl import VERSIONS
from lcx.huggingface.config import Config
from lcx.huggingface.families import FAMILIES
from lcx.huggingface.family import Family
from lcx.huggingface.folder import CONFIG, INDEX, SINGLE
from lcx.huggingface.tensors import written
from lcx.mixers import RWKV7, GatedDeltaNet, SoftmaxAttention
from lcx.model import LM
from lcx.types import Params, Policy

SHARD = 4 * 2**30
"""Bytes of tensors in a file, where they are more than one file."""


def family_of(model: LM) -> tuple[Family, dict[str, Any]]:
    """The family that has this architecture, and its config: of transformers' first.

    Raises ValueError where none has, with what the nearest lacks.
    """
    wanted, nearest = _plain(model), None
    families = (*FAMILIES, *VERSIONS)
    for family in families:
        config, differs = _fit(family, wanted)
        if config is not None and not differs:
            return family, config
        if differs and (nearest is None or len(differs) < len(nearest[1])):
            nearest = family.kinds[0], differs
    known = ", ".join(kind for family in families for kind in family.kinds)
    if nearest is None:
        parts = dict.fromkeys(type(s).__name__ for b in model.pattern for s in b.sublayers.values())
        raise ValueError(
            f"no published family has blocks of {' and '.join(parts)}; those known are {known}"
        )
    kind, differs = nearest
    raise ValueError(f"no published family is this model; {kind} is near: {'; '.join(differs[:3])}")


def _fit(family: Family, wanted: LM) -> tuple[dict[str, Any] | None, list[str]]:
    """The config that a family has for a model, and in what it tells another."""
    try:
        config = family.write(wanted)
        if config is None:
            return None, []
        told = family.read(Config(config, "its config"))
    except ValueError as error:
        return None, [str(error)]
    return config, list(spec.differences(wanted, _plain(told), "model"))


def _plain(model: LM) -> LM:
    """The model as a config can tell it: sizes are told, and what changes no output is not."""
    pattern = tuple(_told(block, model) for block in model.pattern)
    plain = replace(model, policy=Policy(), remat="none", embed_noise=None)
    return replace(plain, vocab=model.vocabulary, pattern=pattern)


def _told(block: Any, model: LM) -> Any:
    mixer, channel = block.mixer, block.channel
    if hasattr(channel, "width"):
        channel = replace(channel, hidden=channel.width(model.width))
    if isinstance(mixer, SoftmaxAttention):
        width = mixer.head_width or model.width // max(mixer.heads, 1)
        own = None if width * mixer.heads == model.width else width
        scale = None if mixer.scale == width**-0.5 else mixer.scale
        mixer = replace(mixer, head_width=own, scale=scale, kv_heads=mixer.groups)
    if isinstance(mixer, GatedDeltaNet):
        mixer = replace(mixer, key_heads=mixer.groups)
    if isinstance(mixer, RWKV7):
        mixer = replace(mixer, **mixer.ranks(model.width))
    return replace(block, mixer=mixer, channel=channel, dropout=0.0)


LENGTH = {"mpt": "max_seq_len", "rwkv": "context_length"}
"""What configs call the length of a training's texts; others: max_position_embeddings."""
NO_LENGTH = ("gpt2", "bloom", "mamba2")
"""Families whose configs do not say it; GPT-2's is the number of its vectors."""


def check_empty(folder: Path) -> None:
    """Raise FileExistsError for a file, and for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty, and nothing is overwritten; give another")


def write_model(
    folder: Path,
    model: LM,
    params: Params,
    length: int | None = None,
    bos: int | None = None,
) -> None:
    """config.json and safetensors, in the dtype of the parameters, in a folder that is empty.

    RWKV-5 to 7, which transformers does not have, as BlinkDL publishes them: without a config.
    length: of the texts of its training. bos: the id that begins a text, and ends the one before.
    Raises ValueError for a model that no family has, FileExistsError for a folder that holds
    something; nothing is written then.
    """
    family, config = family_of(model)
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if family not in VERSIONS:
        _write_config(folder, config, model.policy.params, length, bos)
    _write_tensors(folder, written(family, model, params))


def _write_config(
    folder: Path, config: dict[str, Any], dtype: str, length: int | None, bos: int | None
) -> None:
    # transformers takes a family's own ids of these, where a config says none
    ids = {"bos_token_id": bos, "eos_token_id": bos, "pad_token_id": None}
    kind = config["model_type"]
    if length is not None and kind not in NO_LENGTH:
        # where positions depend on it, the config says it already
        config = {LENGTH.get(kind, "max_position_embeddings"): length} | config
    config = config | ids | {"dtype": dtype, "torch_dtype": dtype}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_tensors(folder: Path, named: Iterator[tuple[str, np.ndarray]]) -> None:
    from safetensors.numpy import save_file

    files: list[dict[str, np.ndarray]] = [{}]
    names: list[list[str]] = []
    size = total = 0

    def close() -> None:
        names.append([*files[-1]])
        part = folder / f"{len(names)}.part"
        save_file(files[-1], part, {"format": "pt"})
        part.chmod(0o644)  # as other files are
        files[-1] = {}

    for name, tensor in named:
        if files[-1] and size + tensor.nbytes > SHARD:
            close()
            size = 0
        files[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    close()
    if len(names) == 1:
        (folder / "1.part").rename(folder / SINGLE)
        return
    index = {}
    for number, held in enumerate(names, 1):
        file = f"model-{number:05}-of-{len(names):05}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        index |= dict.fromkeys(held, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
