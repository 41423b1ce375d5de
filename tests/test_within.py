"""`Data(split="within")`: what is held out of the middle of documents."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcx.data import BPE, SPLITS, Data, Documents, TextFiles, packing
from lcx.data.within import LINE, pieces, split_within
from lcx.protocols import ByPosition, SameTargets


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LCX_CACHE", str(tmp_path / "cache"))


def book(lines: int, seed: int = 0) -> bytes:
    """Numbered lines, no two alike."""
    chance = random.Random(seed)
    words = "łódź river stone of the morning and every wood 你好 again".split()
    text = (f"{n}: {' '.join(chance.choices(words, k=8))}\n" for n in range(lines))
    return "".join(text).encode()


@pytest.fixture
def one(tmp_path: Path) -> Data:
    """One file of about 150,000 bytes, from which pieces of about 4,000 are held out."""
    (tmp_path / "book.txt").write_bytes(book(2500))
    return Data(TextFiles(str(tmp_path / "book.txt")), split="within", piece=4000)


TEXTS = st.binary(max_size=300) | st.text(alphabet="aé你\n", max_size=20_000).map(str.encode)


@given(TEXTS, st.sampled_from([(0, 0), (0.05, 0.1), (0.2, 0), (0, 0.9), (0.25, 0.5)]))
def test_pieces_are_the_whole_document_once_and_in_order(text, shares):
    found = pieces("name", text, *shares, piece=500)
    assert b"".join(text[p.begin : p.end] for p in found) == text
    assert all(p.begin < p.end for p in found)
    assert found == pieces("name", text, *shares, piece=500)
    kinds = {p.split for p in found}
    assert kinds <= set(SPLITS)
    assert ("test" in kinds) <= (shares[1] > 0)
    assert ("validation" in kinds) <= (shares[0] > 0)


@given(st.text(alphabet="aé你😀", min_size=100, max_size=3000), st.sampled_from(["a", "b", "c"]))
def test_no_character_is_cut(text, name):
    text = text.encode()
    for piece in pieces(name, text, 0.1, 0.2, piece=100):
        text[piece.begin : piece.end].decode()


def test_pieces_are_lines_of_about_the_size_and_share_that_were_asked_for():
    text = book(5000)
    found = pieces("book.txt", text, 0.05, 0.1, piece=5000)
    held = {s: [p.end - p.begin for p in found if p.split == s] for s in SPLITS}
    longest_line = max(map(len, text.splitlines())) + 1
    assert all(5000 - longest_line <= n < 10_000 + longest_line for n in held["test"])
    assert len(held["test"]) == int(len(text) * 0.1 / 5000)
    for split, share in (("test", 0.1), ("validation", 0.05)):
        # each piece is off by a line at most
        assert abs(sum(held[split]) - share * len(text)) <= longest_line * len(held[split])
    assert all(text[p.end - 1 : p.end] == b"\n" for p in found)
    without = [p for p in pieces("book.txt", text, 0, 0.1, 5000) if p.split == "test"]
    assert without == [p for p in found if p.split == "test"]
    assert pieces("other.txt", text, 0.05, 0.1, 5000) != found
    one_line = b"x" * (4 * LINE)
    assert {p.split for p in pieces("x", one_line, 0.05, 0.1, 5000)} == set(SPLITS)


def test_what_is_trained_on_has_nothing_of_what_is_held_out(one: Data):
    corpus = one.load()
    lines = {s: [line for d in corpus.documents(s) for line in d.text.splitlines()] for s in SPLITS}
    assert sorted(itertools.chain(*lines.values())) == sorted(book(2500).splitlines())
    assert not set(lines["train"]) & {*lines["test"], *lines["validation"]}
    # an evaluated context is a part of a held-out piece, and so of its lines alone
    protocol = SameTargets(contexts=(64, 2048), documents=None)
    texts = corpus.targets(protocol).texts
    assert len(texts) == len(corpus.documents("test")) == 3
    held_out = {d.name: d.text for d in corpus.documents("test")}
    for text in texts:
        assert corpus.tokenizer.decode(text.ids) == held_out[text.name]
    tokens = packing.Tokens.of(corpus.documents("train"), corpus.tokenizer)
    assert (
        bytes(np.asarray(tokens.ids[tokens.ids < 256]).astype(np.uint8)).splitlines()
        == (lines["train"])
    )


def test_pieces_are_the_same_for_every_tokenizer_and_known_by_the_fingerprint(one: Data):
    corpus = one.load()
    words = replace(one, tokenizer=BPE(300)).load()
    for split in SPLITS:
        assert words.documents(split).names == corpus.documents(split).names
    others = [replace(one, piece=5000), replace(one, test=0.2), replace(one, validation=0.1)]
    prints = {corpus.fingerprint, *(other.load().fingerprint for other in others)}
    assert len(prints) == 4
    assert one.load().fingerprint == corpus.fingerprint
    assert corpus.documents("test").names[0].startswith("book.txt[")


def test_documents_that_belong_together_are_not_cut(tmp_path: Path):
    edition = book(300)
    texts = {"a.txt": edition, "b.txt": edition.replace(b"250:", b"251:"), "c.txt": book(300, 1)}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    corpus = Data(TextFiles(str(tmp_path / "*.txt")), split="within").load()
    names = [name for split in SPLITS for name in corpus.documents(split).names]
    assert {"a.txt", "b.txt"} < set(names)
    assert any(name.startswith("c.txt[") for name in names)
    groups = Documents(["x", "y", "z"], lambda i: book(100, i), ["one", "one", "two"])
    found = split_within(groups, 0.0, 0.2, 100)
    assert [n for s in SPLITS for n in found[s].names if n in ("x", "y", "z")] == ["x", "y"]


def test_short_stretches_between_pieces_can_be_left_out_of_training(one: Data):
    every = one.load()
    sizes = sorted(len(d.text) for d in every.documents("train"))
    least = sizes[len(sizes) // 2]
    assert replace(one, at_least=least).load().tokens("train") == sum(
        size + 1 for size in sizes if size >= least
    )
    assert replace(one, at_least=least).load().fingerprint == every.fingerprint


def test_errors_name_the_setting(one: Data):
    whole = replace(one, split="documents", piece=None)
    with pytest.raises(ValueError, match=r"none of the 1 documents .*; data.split='within' holds"):
        whole.load().check(64, SameTargets())
    with pytest.raises(ValueError, match=r"holds no document.*split='within'"):
        replace(whole, tokenizer=BPE(300), validation=0, test=0.999).load()
    for protocol in (SameTargets(), ByPosition()):
        with pytest.raises(ValueError, match=r"book\.txt\[.* Pieces of 4000 bytes .* data\.piece"):
            one.load().check(64, protocol)
    with pytest.raises(ValueError, match="none of the 10 pieces falls in split 'test'"):
        replace(one, test=0, piece=2000).load().documents("test")
    with pytest.raises(ValueError, match=r"piece=10 .* goes with split='within'"):
        Data(piece=10)
    with pytest.raises(ValueError, match=r"piece=0 .* at least 1"):
        Data(piece=0, split="within")
    with pytest.raises(ValueError, match=r"validation 0.5 has no room .* at most 0.35"):
        Data(validation=0.5, test=0.3, split="within")
