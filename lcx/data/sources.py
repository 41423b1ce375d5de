"""Where text comes from. A source is a spec; `documents()` gives its documents, lazily."""

import contextlib
import difflib
import glob
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lcx.data import cache
from lcx.data.documents import Documents


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
    neither names nor splits. Raises FileNotFoundError when no file matches, and ValueError when
    all that match are empty.
    """

    glob: str

    def documents(self) -> Documents:
        pattern = Path(self.glob).expanduser()
        paths = [Path(path) for path in glob.glob(str(pattern), recursive=True)]
        paths = sorted(path for path in paths if path.is_file())
        if not paths:
            raise FileNotFoundError(f"{self}: no file matches (looked from {Path.cwd()})")
        if not any(path.stat().st_size for path in paths):
            raise ValueError(f"{self}: all {len(paths)} matching files are empty")
        root = next(p for p in pattern.parents if not glob.has_magic(str(p)))
        names = [path.relative_to(root).as_posix() for path in paths]
        return Documents(names, lambda i: paths[i].read_bytes())


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


@dataclass(frozen=True)
class Conversations:
    """Conversations as FastChat and ShareGPT have them: each is a document.

    Files of JSON, each a list of {"id": ..., "conversations": [{"from": "human", "value": "..."},
    {"from": "gpt", "value": "..."}, ...]}. A turn becomes a paragraph that begins with USER: or
    ASSISTANT: (Vicuna's words). ShareGPT's ids "abc_0", "abc_7" are of pieces of one conversation,
    which stay in one split. Raises FileNotFoundError when no file matches, and ValueError for
    a file of another form.
    """

    glob: str

    def documents(self) -> Documents:
        files = TextFiles(self.glob).documents()
        names, groups, texts, known = [], [], [], set()
        for file in files:
            try:
                for number, entry in enumerate(json.loads(file.text)):
                    name = f"{file.name}/{entry.get('id', number)}"
                    names.append(name if name not in known else f"{name}/{number}")
                    known.add(name)
                    groups.append(re.sub(r"_\d+$", "", name))
                    text = _conversation(entry["conversations"])
                    texts.append(text.encode(errors="surrogatepass"))  # of half an emoji
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{self}: {file.name} is no list of conversations ({error!r}); expected "
                    '[{"conversations": [{"from": "human", "value": "..."}, ...]}, ...]'
                ) from error
        return Documents(names, lambda i: texts[i], groups)


_SPEAKERS = {"human": "USER", "user": "USER", "gpt": "ASSISTANT", "assistant": "ASSISTANT"}


def _conversation(turns: list[dict[str, str]]) -> str:
    speakers = [_SPEAKERS.get(turn["from"], turn["from"].upper()) for turn in turns]
    return "\n\n".join(f"{s}: {t['value'] or ''}" for s, t in zip(speakers, turns, strict=True))


SOURCES: dict[str, type[Source]] = {
    c.__name__: c for c in (PythonCorpus, TextFiles, TFDS, Conversations)
}
