"""Things made once and kept: prepared datasets, trained tokenizers, token ids."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def folder() -> Path:
    """Where they are kept: `$LCX_CACHE`, or else `~/.cache/lcx`."""
    try:
        return Path(os.environ.get("LCX_CACHE") or "~/.cache/lcx").expanduser()
    except RuntimeError:
        raise ValueError("no home folder for the cache: set LCX_CACHE to a folder") from None


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, a file or a folder, which `make` writes (at the path it is given) if it is missing.

    Processes that ask together wait for the one that makes it. It is made under another name and
    renamed when whole, so one that was killed half-way leaves nothing that looks finished.
    """
    from filelock import FileLock

    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the cache {folder()} cannot be written ({error.strerror}): set LCX_CACHE to a folder "
            "that can"
        ) from error
    with FileLock(path.with_name(path.name + ".lock")):
        if not path.exists():
            unfinished = path.with_name(path.name + ".unfinished")
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            unfinished.unlink(missing_ok=True)
            make(unfinished)
            unfinished.rename(path)
    return path


class Digest:
    """A hash of a sequence of byte strings, which also tells where one ends and the next begins."""

    def __init__(self, *parts: str | bytes):
        self._hash = hashlib.blake2b(digest_size=16)
        self.add(*parts)

    def add(self, *parts: str | bytes) -> None:
        for part in parts:
            data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
            self._hash.update(len(data).to_bytes(8, "little"))
            self._hash.update(data)

    def __str__(self) -> str:
        return self._hash.hexdigest()
