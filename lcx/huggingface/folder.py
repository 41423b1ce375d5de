"""A folder as Hugging Face has it: `config.json`, safetensors, and an index where they are many."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from lcx.cache import Digest

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
"""Transformers' names: of the config, of one file with all weights, and of what says which of
several files has which tensor."""


@dataclass(frozen=True)
class Folder:
    """What lies in it. Messages begin with `name`.

    Where there is an index, it alone says which tensors are read, and from which files; elsewhere
    `model.safetensors` is read. No other file is, whatever lies beside them.
    """

    path: Path
    name: str

    @property
    def told_by(self) -> str:
        """What tells the config, in messages."""
        return str(self.path / CONFIG)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Raises FileNotFoundError without one, ValueError for what is no folder of a model."""
        return self._json(self.path / CONFIG)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Which file each tensor is read from.

        Raises FileNotFoundError where one that is named is not there, ValueError where one does not
        hold what it should.
        """
        index, single = self.path / INDEX, self.path / SINGLE
        if index.is_file():
            return self._indexed(index)
        if not single.is_file():
            raise FileNotFoundError(f"{self.name}: neither {INDEX} nor {SINGLE}{self._instead()}")
        with self._open(single) as file:
            return dict.fromkeys(file.keys(), single)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors; reads the files' headers alone."""
        return {name: tuple(header.get_shape()) for name, header in self._headers()}

    @cached_property
    def dtypes(self) -> set[str]:
        """Those that tensors have, in the words of safetensors ("F32", "BF16")."""
        return {header.get_dtype() for _, header in self._headers()}

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or the part of it at an index."""
        with self._open(self.files[name]) as file:
            return file.get_tensor(name) if index is None else file.get_slice(name)[index]

    def fingerprint(self) -> str:
        """A digest of the config and of all that is read of the weights.

        Two folders have the same one where the configs are the same bytes, and each tensor is read
        from a file of the same content, whatever the files are called. Reads all of them, about a
        second a GB.
        """
        _ = self.config  # says what is no folder of a model
        digests = {path: _digest(path) for path in dict.fromkeys(self.files.values())}
        held = (part for n in sorted(self.files) for part in (n, digests[self.files[n]]))
        return str(Digest(*self._beside(), *held))

    def _headers(self) -> Iterator[tuple[str, Any]]:
        """Each tensor, of which nothing is read before it is sliced."""
        for path in dict.fromkeys(self.files.values()):
            with self._open(path) as file:
                for name in (name for name, held in self.files.items() if held == path):
                    yield name, file.get_slice(name)

    def _beside(self) -> tuple[bytes, ...]:
        """Digests of what is read beside the weights."""
        return (_digest(self.path / CONFIG),)

    def _json(self, path: Path) -> dict[str, Any]:
        if self.path.is_file():
            raise ValueError(f"{self.name}: a file; it has to be the folder with config.json in it")
        if not path.is_file():
            raise FileNotFoundError(f"{self.name}: no {path}")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.name}: {path} is no JSON: {error}") from error
        if not isinstance(found, dict):
            kind = type(found).__name__
            raise ValueError(f"{self.name}: {path} holds a {kind}, not an object {{...}}")
        return found

    def _indexed(self, index: Path) -> dict[str, Path]:
        """As an index says; every file that it names has to be there, with what it says of it."""
        names = self._json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise ValueError(f"{self.name}: {index} has no weight_map from tensors to files")
        for name in dict.fromkeys(names.values()):
            if not (path := self.path / name).is_file():
                raise FileNotFoundError(
                    f"{self.name}: {index.name} names {name}, and no such file is there"
                )
            with self._open(path) as file:
                held = set(file.keys())
            lacking = [tensor for tensor, n in names.items() if n == name and tensor not in held]
            if lacking:
                more = f" and {len(lacking) - 1} more" * (len(lacking) > 1)
                raise ValueError(
                    f"{self.name}: {index.name} says that {name} holds {lacking[0]}{more}"
                )
        return {tensor: self.path / name for tensor, name in names.items()}

    def _instead(self) -> str:
        """What a folder without the files that are read has, and what to do."""
        if others := sorted(p.name for p in self.path.glob("*.safetensors")):
            return (
                f" in {self.path}, which holds {others[0]} (of {len(others)}): fetch {INDEX}, or "
                f"call {SINGLE} the one file that has all weights"
            )
        pickled = sorted(p.name for s in ("bin", "pth", "pt") for p in self.path.glob(f"*.{s}"))
        if pickled:
            said = f" in {self.path}; {pickled[0]} is a pickle, which may run code, and is not read"
            return f"{said}: convert it by {_conversion(self.path / pickled[0])}"
        return f" in {self.path}"

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(
                f"{self.name}: {path} cannot be read ({error}): fetch the file again"
            ) from error


def _conversion(pickled: Path) -> str:
    """What makes safetensors of a pickle, and runs nothing that is in it."""
    if pickled.suffix == ".bin":  # as transformers has them, with a config beside
        return "transformers, AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another)"
    # of tensors that may be on a GPU, views of others, or parts of one
    return (
        'python -c "import sys, torch, safetensors.torch as s; '
        "t = torch.load(sys.argv[1], 'cpu', weights_only=True); "
        "s.save_file({n: t.pop(n).clone(memory_format=torch.contiguous_format) for n in [*t]}, "
        f'sys.argv[2])" {quote(str(pickled))} {quote(str(pickled.with_name(SINGLE)))}'
    )


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
