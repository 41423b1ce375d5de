"""The `python_source` dataset: the source of the running Python's own standard library."""

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from lcx.cache import Digest

OMITTED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
"""Folders that are no part of the library, or that hold tests, whose text is unlike the rest."""


def files() -> list[Path]:
    """The library's `.py` files, relative to its root, sorted."""
    root = _root()
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    found = sorted(path for path in paths if not OMITTED.intersection(path.parts))
    if not found:
        raise FileNotFoundError(
            f"no Python source in {root}: this Python came without the source of its library. "
            "Name other text: TextFiles(glob)"
        )
    return found


def key() -> str:
    """What tells this library from another: version, file names and sizes."""
    digest = Digest()
    for path in files():
        digest.add(path.as_posix(), str((_root() / path).stat().st_size))
    return f"{platform.python_version()}-{str(digest)[:12]}"


class PythonSource(tfds.core.GeneratorBasedBuilder):
    """Each file of the library is an example: its `name` (relative path) and its `text`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The standard library of Python {platform.python_version()}.",
            features=tfds.features.FeaturesDict({"name": text, "text": text}),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, bytes | str]]]]:
        return {"documents": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, bytes | str]]]:
        for index, path in enumerate(files()):
            yield index, {"name": path.as_posix(), "text": (_root() / path).read_bytes()}


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))
