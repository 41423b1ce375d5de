"""Where text comes from. A source is a spec; `documents()` gives its documents, lazily."""

import contextlib
import difflib
import glob
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lcx import cache
from lcx.data.documents import Documents
from lcx.paths import GlobPath


@runtime_checkable
class Source(Protocol):
    """A body of text, as a spec."""

    def documents(self) -> Documents:
        """Its documents, in a stable order."""
        ...


@dataclass(frozen=True)
class PythonCorpus:
    """The source of the running Python's standard library: about 700 files, 12 MB, no download.

    Written once, as a tensorflow_datasets dataset in ArrayRecord format, into the cache. Another
    Python, or another build of the same version, makes another dataset.
    """

    def documents(self) -> Documents:
        from lcx.data import python_source

        def builder(folder: Path) -> python_source.PythonSource:
            return python_source.PythonSource(data_dir=folder, file_format="array_record")

        def prepare(folder: Path) -> None:
            quiet = io.StringIO()  # half a second's work needs no progress bars
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                builder(folder).download_and_prepare()

        folder = cache.once(cache.folder() / "python_source" / python_source.key(), prepare)
        examples = builder(folder).as_data_source(split="documents")
        return Documents(
            [example["name"].decode() for example in examples], lambda i: examples[i]["text"]
        )


@dataclass(frozen=True)
class TextFiles:
    """Files of text: each file that matches the glob is a document (`**` descends into folders).

    A document is named by its path below the glob's fixed part, so moving the whole folder changes
    neither names nor splits. A path that is there as it is written is taken for itself, whatever
    characters it has. Raises FileNotFoundError when no file matches, or one is a link to nothing,
    and ValueError when one may not be read, or all that match are empty.
    """

    glob: GlobPath

    def documents(self) -> Documents:
        pattern = Path(self.glob).expanduser()
        if pattern.is_dir():
            inside = Path(self.glob) / "**" / "*.txt"
            raise FileNotFoundError(f"{self}: it is a folder; write '{inside}', say")
        if pattern.is_file():
            paths, root = [pattern], pattern.parent
        else:
            paths = sorted(Path(path) for path in glob.glob(str(pattern), recursive=True))
            root = next(filter(None, map(_fixed, pattern.parents)))
        for path in paths:
            if path.is_symlink() and not path.exists():
                raise FileNotFoundError(
                    f"{self}: {path} is a link to {os.readlink(path)}, which is not there"
                )
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise FileNotFoundError(f"{self}: no file matches (looked from {Path.cwd()})")
        if closed := [str(path) for path in paths if not os.access(path, os.R_OK)]:
            raise ValueError(f"{self}: no permission to read {', '.join(closed[:3])}")
        if not any(path.stat().st_size for path in paths):
            raise ValueError(f"{self}: all {len(paths)} matching files are empty")
        names = [path.relative_to(root).as_posix() for path in paths]
        return Documents(names, lambda i: paths[i].read_bytes())


def _fixed(pattern: Path) -> Path | None:
    """The folder that a part of a pattern stands for, where no sign in it is open."""
    if glob.has_magic(re.sub(r"\[[*?[]\]", "", str(pattern))):
        return None
    return Path(re.sub(r"\[([*?[])\]", r"\1", str(pattern)))


@dataclass(frozen=True)
class TFDS:
    """A tensorflow_datasets dataset, in a format with random access (array_record or parquet).

    It is looked for in tensorflow_datasets' own folder (`$TFDS_DATA_DIR`) and prepared there if
    it is missing; to prepare some datasets takes TensorFlow, to read them does not. Raises
    ValueError for an unknown name or key, and for data that is already there as TFRecord files.
    """

    name: str
    split: str = "train"
    text_key: str = "text"

    def documents(self) -> Documents:
        builder = self._builder()
        keys = list(builder.info.features or ())
        if self.text_key not in keys:
            raise ValueError(f"{self}: no key {self.text_key!r}; the examples have {keys}")
        feature = builder.info.features[self.text_key]
        if feature.shape != () or feature.np_dtype != "object":
            raise ValueError(f"{self}: {self.text_key!r} is no text: {feature}")
        try:
            examples = builder.as_data_source(split=self.split)
        except NotImplementedError:
            raise ValueError(
                f"{self}: it is prepared in {builder.data_dir} as "
                f"{builder.info.file_format.value} files, which have no random access. Convert "
                "it to array_record, or remove that folder and it is prepared anew"
            ) from None
        names = [f"{builder.name}/{self.split}/{index}" for index in range(len(examples))]
        return Documents(names, lambda i: examples[i][self.text_key])

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds
        from filelock import FileLock

        builder_name = re.split("[/:]", self.name)[0]
        try:
            builder = tfds.builder(self.name)
        except tfds.core.DatasetNotFoundError:
            known = tfds.list_builders(with_community_datasets=False)
            near = difflib.get_close_matches(builder_name, known)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"{self}: tensorflow_datasets knows no {builder_name!r}{hint}"
            ) from None
        cache.folder().mkdir(parents=True, exist_ok=True)
        with FileLock(cache.folder() / f"tfds-{builder.name}.lock"):
            if not builder.is_prepared():
                try:
                    builder.download_and_prepare(file_format="array_record")
                except ImportError as error:
                    raise ImportError(
                        f"{self}: to prepare it takes a package that is not here ({error}); for "
                        "TensorFlow: pip install 'lcx[tf]'"
                    ) from error
        return builder
