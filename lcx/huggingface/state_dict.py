"""A folder with safetensors and no config, as BlinkDL's state dicts are when they are converted."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lcx.huggingface.blinkdl import told
from lcx.huggingface.folder import CONFIG, Folder

UNREAD = tuple(f"blocks.0.att.v{n}" for n in range(3))
"""Of RWKV-7, by which its first layer would mix its values with the first layer's, its own: nothing
reads them, and some files lack them."""


def holds_model(path: Path) -> bool:
    """Whether a folder is a published model's, rather than one of runs."""
    return (path / CONFIG).is_file() or _has_weights(path)


def folder_at(path: Path, name: str) -> Folder:
    """As what it holds is read; whether it can be is said when it is."""
    bare = not (path / CONFIG).is_file() and _has_weights(path)
    return StateDict(path, name) if bare else Folder(path, name)


def _has_weights(path: Path) -> bool:
    """Safetensors, or a pickle, which `Folder.files` says how to convert."""
    return path.is_dir() and any(p.suffix in (".safetensors", ".pth") for p in path.iterdir())


class StateDict(Folder):
    """What lies in it, where the names and shapes of tensors say what a config does elsewhere."""

    @property
    def told_by(self) -> str:
        return f"{self.path}, by its tensors"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Raises FileNotFoundError where the tensors tell none, ValueError for other models."""
        try:
            found = told(self.shapes)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        if found is None:
            raise FileNotFoundError(
                f"{self.name}: no {self.path / CONFIG}, which all models but BlinkDL's RWKV need; "
                "the tensors are not those of one"
            )
        return found | {"dtype": "bfloat16" if self.dtypes == {"BF16"} else "float32"}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        found = super().shapes
        later = {name: name.replace("blocks.0", "blocks.1") for name in UNREAD}
        return {name: found[like] for name, like in later.items() if like in found} | found

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        if name in self.files:
            return super().read(name, index)
        zeros = np.zeros(self.shapes[name], np.float32)
        return zeros if index is None else zeros[index]

    def _beside(self) -> tuple[bytes, ...]:
        return ()
