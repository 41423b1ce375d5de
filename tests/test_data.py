import itertools
import json
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lcx import cache, progress
from lcx.data import (
    BPE,
    SOURCES,
    SPLITS,
    TFDS,
    TOKENIZERS,
    Bytes,
    Corpus,
    Data,
    Documents,
    PythonCorpus,
    TextFiles,
    packing,
)
from lcx.data.documents import split_of
from lcx.data.duplicates import with_near_copies
from lcx.protocols import ByPosition, SameTargets


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LCX_CACHE", str(tmp_path / "cache"))


def write(folder: Path, texts: dict[str, bytes]) -> TextFiles:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return TextFiles(str(folder / "**" / "*.txt"))


def some_texts() -> dict[str, bytes]:
    """Documents of uneven length; the bytes of document d lie in [8 d, 8 d + 8)."""
    rng = np.random.default_rng(0)
    lengths = (1, 300, 7, 0, 64, 65, 2, 31, 128, 40, 33, 5, 90, 3, 17, 250, 10, 11, 12, 13)
    return {
        f"{d:02}.txt": rng.integers(8 * d, 8 * d + 8, n, dtype=np.uint8).tobytes()
        for d, n in enumerate(lengths)
    }


ALL_TRAIN = {"validation": 0.0, "test": 0.0}


# Documents and splits


def test_a_document_keeps_its_split():
    names = ["json/decoder.py", "tarfile.py", "a", "b", "c", "abc.py", "zipfile.py", "ünïcode.txt"]
    assert [split_of(name, 0.05, 0.1) for name in names] == [
        *("validation", "test", "train", "train", "train", "train", "test", "test")
    ]
    names = [f"document {i}" for i in range(4000)]
    splits = Counter(split_of(name, 0.05, 0.1) for name in names)
    assert splits == {"train": 3362, "validation": 210, "test": 428}
    for name in names:  # a larger validation split takes from train alone
        before, after = split_of(name, 0.05, 0.1), split_of(name, 0.2, 0.1)
        assert before == after or (before, after) == ("train", "validation")


def test_splits_divide_the_documents(tmp_path: Path):
    source = write(tmp_path, {f"{i}.txt": b"%d" % i for i in range(60)})
    corpus = Data(source, validation=0.2, test=0.3).load()
    found = [document for split in SPLITS for document in corpus.documents(split)]
    assert sorted(found) == sorted(source.documents())
    assert list(corpus.documents("test").names) == sorted(corpus.documents("test").names)


def test_fingerprint_tells_what_differs(tmp_path: Path):
    texts = {f"{i}.txt": b"text %d" % i for i in range(30)}
    source = write(tmp_path / "a", texts)
    data = Data(source, validation=0.2, test=0.3)
    fingerprint = data.load().fingerprint
    assert data.load().fingerprint == fingerprint
    moved = write(tmp_path / "b", texts)
    assert Data(moved, validation=0.2, test=0.3).load().fingerprint == fingerprint
    others = [
        Data(source, BPE(300), validation=0.2, test=0.3),
        Data(source, validation=0.2, test=0.31),
        Data(write(tmp_path / "c", texts | {"3.txt": b"texT 3"}), validation=0.2, test=0.3),
        Data(write(tmp_path / "d", {"n" + n: t for n, t in texts.items()}), Bytes(), 0.2, 0.3),
    ]
    assert len({fingerprint, *(other.load().fingerprint for other in others)}) == 5


def test_text_files_are_sorted_bytes_from_all_folders(tmp_path: Path):
    texts = {"b.txt": b"\xff\x00", "a/z.txt": b"z", "a/b/c.txt": b"", "skip.md": b"no"}
    documents = write(tmp_path, texts).documents()
    assert list(documents) == [("a/b/c.txt", b""), ("a/z.txt", b"z"), ("b.txt", b"\xff\x00")]
    assert documents[-1] == documents[2]
    assert list(TextFiles(str(tmp_path / "b.txt")).documents()) == [("b.txt", b"\xff\x00")]


def test_tables_describe_themselves():
    assert list(SOURCES) == ["PythonCorpus", "TextFiles", "TFDS", "Conversations", "Pairs"]
    assert list(TOKENIZERS) == ["Bytes", "BPE", "TokenizerFile"]
    for spec in (*SOURCES.values(), *TOKENIZERS.values()):
        assert 20 < len(spec.__doc__.splitlines()[0]) < 100


# Packing


@pytest.mark.parametrize("length", [1, 4, 32, 64, 301, 512])
def test_each_token_is_a_target_once_an_epoch(tmp_path: Path, length: int):
    texts = some_texts()
    corpus = Data(write(tmp_path, texts), **ALL_TRAIN).load()
    tokens = packing.Tokens.of(corpus.documents("train"), corpus.tokenizer)
    ids = [list(text) for text in texts.values()]
    seen = Counter()
    most_segments = 0
    for batch in packing.batches(tokens, length, batch=1, seed=3, epochs=1):
        row = {name: np.asarray(value)[0] for name, value in batch.items()}
        assert all(value.shape == (length,) and value.dtype == np.int32 for value in row.values())
        segments = row["segments"]
        padding = int((segments == 0).sum())
        assert (segments[length - padding :] == 0).all()
        for name in ("tokens", "targets", "positions"):
            assert (row[name][length - padding :] == 0).all()
        used = segments[: length - padding]
        assert used[0] == 1
        assert set(np.diff(used)) <= {0, 1}
        most_segments = max(most_segments, used[-1])
        for segment in range(1, used[-1] + 1):
            of_segment = segments == segment
            positions = row["positions"][of_segment]
            assert (np.diff(positions) == 1).all()
            assert positions[0] % length == 0  # whole, or cut at a multiple of the row
            document = row["targets"][of_segment][0] // 8
            for token, target, position in zip(
                row["tokens"][of_segment], row["targets"][of_segment], positions, strict=True
            ):
                before = ids[document][position - 1] if position else corpus.tokenizer.bos
                assert (token, target) == (before, ids[document][position])
                seen[document, int(position)] += 1
    assert seen == {(d, t): 1 for d, text in enumerate(ids) for t in range(len(text))}
    assert most_segments > 1 or length == 1


def test_batches_are_endless_and_shuffled_anew_each_epoch(tmp_path: Path):
    count = 4 * packing.BINS
    source = write(tmp_path, {f"{i:03}.txt": bytes([i]) * 8 for i in range(count)})
    corpus = Data(source, **ALL_TRAIN).load()

    def packs(seed: int, number: int) -> list[frozenset[int]]:
        """The documents in each BINS rows; every document fills exactly one row."""
        stream = iter(corpus.batches(length=8, batch=packing.BINS, seed=seed))
        return [frozenset(next(stream)["targets"][:, 0].tolist()) for _ in range(number)]

    first = packs(seed=0, number=12)
    for epoch in (first[:4], first[4:8], first[8:]):
        assert frozenset.union(*epoch) == frozenset(range(count))
    assert first == packs(seed=0, number=12)
    in_order = [frozenset(range(k, k + packing.BINS)) for k in range(0, count, packing.BINS)]
    # No epoch, of neither seed, has an order that another has.
    assert len({*first, *packs(seed=1, number=12), *in_order}) == 28


@pytest.mark.parametrize("length", [16, 128])
def test_stream_resumes_exactly_where_it_was(tmp_path: Path, length: int):
    corpus = Data(write(tmp_path, some_texts()), **ALL_TRAIN).load()
    whole = iter(corpus.batches(length, batch=3, seed=5))
    states, batches = [], []
    for _ in range(50):  # 150 rows: three packs of BINS rows, and more epochs
        states.append(json.dumps(whole.get_state()))
        batches.append(next(whole))
    assert max(len(state) for state in states) < 200
    for start in (0, 1, 21, 22, 43, 47):
        resumed = iter(corpus.batches(length, batch=3, seed=5))
        resumed.set_state(json.loads(states[start]))
        for expected in batches[start : start + 12]:
            found = next(resumed)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_tokens_are_read_where_they_are_asked_for(tmp_path: Path):
    corpus = Data(write(tmp_path, some_texts()), **ALL_TRAIN).load()
    batch = next(iter(corpus.batches(32, 4, seed=0)))
    for name in ("tokens", "targets"):
        whole = np.asarray(batch[name])
        assert batch[name].shape == whole.shape == (4, 32)
        assert whole.dtype == batch[name].dtype == np.int32
        assert np.array_equal(batch[name][1:3, 8:16], whole[1:3, 8:16])
    asked = []

    class Watched(np.ndarray):
        def __getitem__(self, address):
            asked.extend(np.ravel(address).tolist())
            return np.zeros(np.shape(address), np.uint16)

    file = np.zeros(128, np.uint16).view(Watched)
    ids = packing.Lookup(file, np.arange(128).reshape(4, 32), np.ones((4, 32), bool))
    ids[2:, 16:24]
    assert sorted(asked) == [*range(80, 88), *range(112, 120)]


ALL_TEST = {"validation": 0.0, "test": 0.9999, "alike": None}


def test_token_ids_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = Data(write(tmp_path, some_texts()), **ALL_TEST).load()
    first = corpus.targets(ByPosition((1,))).texts

    def encode(text: bytes) -> np.ndarray:
        raise AssertionError("encoded again")

    monkeypatch.setattr(corpus.tokenizer, "encode", encode)
    again = corpus.targets(ByPosition((1,), seed=1)).texts
    assert [(t.name, t.ids.tolist()) for t in again] == [(t.name, t.ids.tolist()) for t in first]


def test_measured_documents_are_whole(tmp_path: Path):
    texts = some_texts()
    corpus = Data(write(tmp_path, texts), **ALL_TEST).load()
    found = corpus.targets(ByPosition((90,))).texts
    assert [text.name for text in found] == ["01.txt", "08.txt", "12.txt", "15.txt"]
    for text in found:
        assert text.ids.dtype == np.int32
        assert bytes(text.ids.tolist()) == texts[text.name]
    with pytest.raises(ValueError, match=r"'test' has 301 tokens.* of its 20, 01\.txt, has 300"):
        corpus.targets(ByPosition((301,)))
    names = [
        {t.name for t in corpus.targets(ByPosition((9,), documents=5, seed=seed)).texts}
        for seed in range(2)
    ]
    assert len(names[0]) == len(names[1]) == 5
    assert names[0] != names[1]


def test_long_work_on_documents_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    documents = write(tmp_path, some_texts()).documents()
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    packing.Tokens.of(documents, Bytes().load(documents))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    packing.Tokens.of(documents.select(range(3)), Bytes().load(documents))
    assert "tokenizing" in (shown := capsys.readouterr().err)
    assert "3/3" in shown
    monkeypatch.delenv("FORCE_COLOR")
    with_near_copies(documents, 0.5)
    assert capsys.readouterr().err == ""


# Prepared data


def test_python_corpus_is_the_standard_library():
    documents = PythonCorpus().documents()
    texts = dict(documents)
    root = Path(sysconfig.get_path("stdlib"))
    for name in ("json/decoder.py", "pydoc_data/topics.py", "zipfile.py"):
        if (root / name).exists():
            assert texts[name] == (root / name).read_bytes()
    assert not any({"test", "tests", "site-packages"} & set(Path(n).parts) for n in texts)
    assert list(documents.names) == sorted(documents.names, key=lambda name: Path(name).parts)
    assert len(texts) == len(documents)
    size = sum(len(text) for text in texts.values())
    assert 8e6 < size < 16e6
    corpus = Data().load()
    assert sum(len(corpus.documents(split)) for split in SPLITS) == len(documents)


def test_python_corpus_prepared_by_two_processes_after_one_was_killed():
    from lcx.data import python_source

    unfinished = cache.folder() / "python_source" / (python_source.key() + ".unfinished")
    (unfinished / "python_source" / "1.0.0").mkdir(parents=True)
    (unfinished / "python_source" / "1.0.0" / "dataset_info.json").write_text("{")
    program = (
        "from lcx.data import PythonCorpus\n"
        "documents = PythonCorpus().documents()\n"
        "print(len(documents), documents.fingerprint)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=120)[0].split() for process in both)
    documents = PythonCorpus().documents()
    assert first == second == [str(len(documents)), documents.fingerprint]
    assert not unfinished.exists()


def test_once_makes_it_once_and_whole(tmp_path: Path):
    path = tmp_path / "deep" / "made"
    made = []

    def killed(unfinished: Path) -> None:
        unfinished.write_text("ha")
        raise KeyboardInterrupt

    def make(unfinished: Path) -> None:
        assert not unfinished.exists()
        made.append(unfinished)
        unfinished.write_text("half and half")

    with pytest.raises(KeyboardInterrupt):
        cache.once(path, killed)
    assert not path.exists()
    threads = [threading.Thread(target=cache.once, args=(path, make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert path.read_text() == "half and half"


@pytest.fixture
def poems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the dataset `lcx_poems`, not yet prepared, will be."""
    import tensorflow_datasets as tfds

    class LcxPoems(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Three poems."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"poem": tfds.features.Text(), "lines": tfds.features.Scalar(np.int32)}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield i, {"poem": b"poem %d\xff" % i, "lines": i}

    registry = tfds.core.registered._DATASET_REGISTRY
    monkeypatch.setitem(registry, "lcx_poems", LcxPoems)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds" / "lcx_poems" / "1.0.0"


def test_tfds_is_prepared_and_read(poems: Path, capsys: pytest.CaptureFixture):
    for _ in range(2):
        documents = TFDS("lcx_poems", text_key="poem").documents()
        assert sorted(text for _, text in documents) == [
            b"poem 0\xff",
            b"poem 1\xff",
            b"poem 2\xff",
        ]
        assert list(documents.names) == [f"lcx_poems/train/{i}" for i in range(3)]
    assert poems.is_dir()


def test_tfds_errors(poems: Path):
    with pytest.raises(ValueError, match=r"knows no 'lcx_peoms'; did you mean lcx_poems\?"):
        TFDS("lcx_peoms").documents()
    with pytest.raises(ValueError, match=r"no key 'text'; the examples have \['poem', 'lines'\]"):
        TFDS("lcx_poems").documents()
    with pytest.raises(ValueError, match="'lines' is no text: Scalar"):
        TFDS("lcx_poems", text_key="lines").documents()
    with pytest.raises(ValueError, match="split 'dev'"):
        TFDS("lcx_poems", split="dev", text_key="poem").documents()
    info = poems / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="as tfrecord files, which have no random access"):
        TFDS("lcx_poems", text_key="poem").documents()


# Bad input


def test_missing_and_empty_files(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"\.txt'\): no file matches"):
        TextFiles(str(tmp_path / "*.txt")).documents()
    with pytest.raises(ValueError, match="all 2 matching files are empty"):
        write(tmp_path, {"a.txt": b"", "b.txt": b""}).documents()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    (tmp_path / "folder.txt").mkdir()
    assert source.documents().names == ["a.txt", "b.txt"]
    with pytest.raises(FileNotFoundError, match=r"it is a folder; write '.*/\*\*/\*\.txt'"):
        TextFiles(str(tmp_path)).documents()
    (tmp_path / "c.txt").symlink_to("gone.txt")
    with pytest.raises(FileNotFoundError, match=r"c\.txt is a link to gone\.txt, which is not"):
        source.documents()
    (tmp_path / "c.txt").unlink()
    # to root every file is open
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "b.txt")
    with pytest.raises(ValueError, match=r"no permission to read .*b\.txt"):
        source.documents()


def test_a_path_with_characters_of_patterns_is_itself(tmp_path: Path):
    write(tmp_path / "[old]", {"w[128]*.txt": b"star", "w1.txt": b"one"})
    found = TextFiles(str(tmp_path / "[old]" / "w[128]*.txt")).documents()
    assert list(found) == [("w[128]*.txt", b"star")]


@pytest.mark.parametrize(
    "fractions", [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (0.9, 0.2), (float("nan"), 0.1)]
)
def test_fractions_out_of_range(fractions: tuple[float, float]):
    with pytest.raises(ValueError, match="leave some for training"):
        Data(validation=fractions[0], test=fractions[1])


def test_empty_splits_are_named(tmp_path: Path):
    source = write(tmp_path, {"a.txt": b"x", "b.txt": b""})
    corpus = Data(source, **ALL_TRAIN).load()
    with pytest.raises(ValueError, match="none of the 2 documents falls in split 'validation'"):
        corpus.documents("validation")
    with pytest.raises(ValueError, match="no split 'dev'; there are train, validation, test"):
        corpus.documents("dev")
    for arguments in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ValueError, match="at least 1; seed"):
            corpus.batches(*arguments)
    with pytest.raises(ValueError, match=r"BPE.*train split, which holds no document"):
        BPE().load(Documents([], lambda i: b""))
    nothing = Corpus(Data(), {"train": Documents(["a"], lambda i: b"")}, corpus.tokenizer)
    with pytest.raises(ValueError, match="nothing to pack"):
        nothing.batches(8, 1, 0)


def test_short_documents_can_be_left_out_of_training_alone(texts):
    every = Data(TextFiles(f"{texts}/*.txt"), validation=0.2, test=0.2)
    corpus, long = every.load(), replace(every, at_least=1500).load()
    assert long.fingerprint == corpus.fingerprint
    longest = [d.name for d in corpus.documents("train") if len(d.text) >= 1500]
    assert 0 < len(longest) < len(corpus.documents("train"))
    seen = set()
    for batch in itertools.islice(iter(long.batches(4000, 1, seed=0)), 2 * len(longest)):
        rows = zip(batch["tokens"], batch["segments"], strict=True)
        for tokens, segments in rows:
            seen |= {bytes(tokens[segments == s][1:200].astype(np.uint8)) for s in set(segments)}
    starts = {d.text[:199] for d in corpus.documents("train") if len(d.text) < 1500}
    assert not starts & seen
    assert {d.text[:199] for d in corpus.documents("train") if len(d.text) >= 1500} & seen
    with pytest.raises(ValueError, match=r"has 99999 tokens \(data.at_least\); the longest of"):
        replace(every, at_least=99_999).load().check(64, SameTargets(contexts=(16,)))
    with pytest.raises(ValueError, match="at_least cannot be negative"):
        Data(at_least=-1)
