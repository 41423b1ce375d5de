"""Which text is scored: the same for every tokenizer, and nothing that stands elsewhere."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from lcx.data import BPE, Bytes, Data, Documents, TextFiles
from lcx.data.documents import split
from lcx.data.duplicates import hashes, stand_in, with_near_copies
from lcx.protocols import SameTargets
from tests.conftest import WORDS

BYTES = Bytes()
SPANS = SameTargets((8, 32), span=80, documents=None, before=700)


def words(seed: int, n: int) -> bytes:
    return " ".join(
        random.Random(seed).choices([w + str(i) for w in WORDS for i in range(40)], k=n)
    ).encode()


def documents(texts: dict[str, bytes]) -> Documents:
    return Documents(list(texts), lambda i: list(texts.values())[i])


def corpus(folder: Path, texts: dict[str, bytes], tokenizer=BYTES, **settings):
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    given = {"validation": 0.1, "test": 0.3} | settings
    return Data(TextFiles(f"{folder}/*"), tokenizer, **given).load()


@pytest.fixture(scope="module")
def many() -> dict[str, bytes]:
    return {f"{i:02}.txt": words(i, 300) for i in range(60)}


def test_hashes_tell_stretches_apart_wherever_they_stand():
    text = words(0, 40)
    seen: dict[int, bytes] = {}
    for n in (1, 7, 64):
        for i, h in enumerate(hashes(text, n).tolist()):
            assert seen.setdefault(h, text[i : i + n]) == text[i : i + n]
    assert hashes(b"xx" + text, 9)[2:].tolist() == hashes(text, 9).tolist()
    assert len(hashes(b"abc", 4)) == 0
    wanted = hashes(b"one two three", 4)
    found = stand_in(wanted, [b"or two th", b"", b"ree"], 4)
    assert found.tolist() == [b"one two three"[i : i + 4] in b"or two th" for i in range(10)]


def test_every_tokenizer_scores_the_same_bytes(tmp_path, many):
    of_bytes, of_words = (corpus(tmp_path, many, t).targets(SPANS) for t in (Bytes(), BPE(400)))
    assert of_bytes.left_out == of_words.left_out
    assert [(t.name, t.spans) for t in of_bytes.texts] == [
        (t.name, t.spans) for t in of_words.texts
    ]
    assert 8 < len(of_bytes.texts) < 30
    tokenizer = corpus(tmp_path, many, BPE(400)).tokenizer
    for text in of_words.texts:
        assert len(text.spans) == 2
        (a, b), (c, d) = text.spans
        assert 700 <= a < b <= c < d
        raw = many[text.name]
        for window in SPANS.excerpts(text, tokenizer.bos):
            read = tokenizer.decode(window.tokens[1:])
            assert read in raw
        for first, last in text.spans:
            covered = b"".join(
                tokenizer.decode(w.tokens[s.first : s.last])
                for w in SPANS.excerpts(text, tokenizer.bos)
                for s in w.scores
                if s.context == 32
            )
            assert raw[first:last] in covered


def test_choices_are_the_seed_s_and_a_document_s_own(tmp_path, many):
    def spans(**settings):
        from dataclasses import replace

        targets = corpus(tmp_path, many).targets(replace(SPANS, **settings))
        return {t.name: t.spans for t in targets.texts}

    all_of_them, few = spans(), spans(documents=5)
    assert len(few) == 5
    assert few.items() <= all_of_them.items()
    assert spans(seed=1, documents=5) != few


def test_what_stands_in_training_or_twice_is_left_out(tmp_path, many):
    source = documents(many)
    splits = split(source, 0.1, 0.3)
    trained, held = splits["train"].names[0], splits["test"].names
    copied = dict(many)
    copied[trained] = many[trained] + many[held[0]][700:]  # all that could be scored of it
    copied[held[1]] = many[held[1]][:700] + many[held[2]][700:]
    targets = corpus(tmp_path, copied, alike=None).targets(SPANS)
    spans = {t.name: t.spans for t in targets.texts}
    assert held[0] not in spans
    seen = [copied[name][a:b] for name in (held[1], held[2]) for a, b in spans.get(name, ())]
    assert len(set(seen)) == len(seen)
    assert targets.left_out["in training"] == 8
    assert targets.left_out["looked at"] >= 8 + sum(len(s) for s in spans.values())
    with pytest.raises(
        ValueError, match="spans of split 'test' that were looked at stand elsewhere"
    ):
        corpus(tmp_path, dict.fromkeys(many, many[trained]), alike=None).targets(SPANS)


def test_near_copies_stay_in_one_split_and_are_measured_once(tmp_path, many):
    near = dict(many)
    for i, (a, b) in enumerate(itertools.pairwise(list(many)[:20])):
        if i % 2 == 0:
            near[b] = near[a][:1500] + b"another end of it" + str(i).encode()
    groups = with_near_copies(documents(near), 0.5).groups
    assert [groups[i] for i in range(20)] == [f"{i // 2 * 2:02}.txt" for i in range(20)]
    assert list(groups[20:]) == list(near)[20:]
    found = corpus(tmp_path, near).targets(SPANS).texts
    assert len({dict(zip(near, groups, strict=True))[t.name] for t in found}) == len(found)


def test_short_documents_have_no_room(tmp_path, many):
    from dataclasses import replace

    with pytest.raises(ValueError, match="no document of split 'test' has room for a span of 80"):
        corpus(tmp_path, many).targets(replace(SPANS, before=10**6))
    with pytest.raises(ValueError, match=r"bytes of .* are \d+ tokens, fewer than the longest"):
        corpus(tmp_path, many, BPE(400)).targets(replace(SPANS, contexts=(590,)))
    with pytest.raises(ValueError, match=r"alike must lie in \(0, 1\]"):
        Data(alike=2.0)


def test_the_embedded_corpus_gives_8000_tokens_by_default():
    targets = Data().load().targets(SameTargets())
    assert sum(b - a for t in targets.texts for a, b in t.spans) >= 8000
    assert len({t.name for t in targets.texts}) > 12
    starts = np.array([a / (t.starts[-1] + 1) for t in targets.texts for a, _ in t.spans])
    assert starts.max() > 0.5
