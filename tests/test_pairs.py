"""`Pairs`: forms, what is odd, splits, and rows of pairs."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lcx.data import SPLITS, ChatML, Data, PairedTexts, Pairs
from lcx.protocols import SameTargets

ASKED = [{"role": "user", "content": "Hello?"}]
PAIR = {"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."}
TEXTS = [b"USER: Hello?\n\nASSISTANT: Yes.", b"USER: Hello?\n\nASSISTANT: No."]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def read(path: Path, *pairs, **settings):
    path.write_text("\n".join(map(json.dumps, pairs)))
    return Pairs(str(path), **settings).documents()


@pytest.mark.parametrize(
    "pair",
    [
        PAIR,
        {"prompt": ASKED, "chosen": said("Yes."), "rejected": said("No.")},
        {"chosen": ASKED + said("Yes."), "rejected": ASKED + said("No.")},
        {"prompt": "Hello?", "chosen": ASKED + said("Yes."), "rejected": ASKED + said("No.")},
    ],
)
def test_forms_of_pairs(tmp_path, pair):
    documents = read(tmp_path / "pairs.jsonl", pair)
    assert documents.names == ["pairs.jsonl/0/chosen", "pairs.jsonl/0/rejected"]
    assert documents.groups == ["pairs.jsonl/0"] * 2
    assert [d.text for d in documents] == TEXTS
    scored = [documents.marks(i).scored for i in (0, 1)]
    assert [d.text[slice(*s[0])] for d, s in zip(documents, scored, strict=True)] == [
        b" Yes.",
        b" No.",
    ]


def test_answers_that_are_shared_are_not_scored(tmp_path):
    before = [*ASKED, *said("Yes."), {"role": "user", "content": "Sure?"}]
    pair = {"chosen": before + said("I am."), "rejected": before + said("Not quite.")}
    documents = read(tmp_path / "a.jsonl", pair | {"system": "Be brief."}, template=ChatML())
    ((first, last),) = documents.marks(0).scored
    assert documents[0].text[first:last].startswith(b"I am.")
    assert documents[0].text.startswith(b"<|im_start|>system\nBe brief.")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (PAIR | {"rejected": "Yes."}, r"line 2: the chosen answer and the rejected one are equal"),
        (PAIR | {"chosen": " "}, r"line 2: chosen: turn 2 is an empty answer"),
        (PAIR | {"rejected": ""}, r"line 2: rejected: turn 2 is an empty answer"),
        (
            {"chosen": ASKED + said("a"), "rejected": [ASKED[0] | {"content": "?"}, *said("b")]},
            r"line 2: the two part at turn 1, which is no answer",
        ),
        (
            PAIR | {"chosen": [ASKED[0] | {"content": "?"}, *said("b")]},
            r"line 2: the chosen conversation does not have the prompt",
        ),
        (
            {"prompt": "a", "chosen": "b"},
            r"line 2: no pair; expected \{\"prompt\"",
        ),
        ({"chosen": "Human: a", "rejected": "Human: b"}, r"line 2: no pair; expected"),
    ],
)
def test_odd_pairs(tmp_path, pair, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl", PAIR, pair)


def test_what_is_left_out_is_counted(tmp_path):
    pairs = [PAIR, PAIR | {"rejected": "Yes."}, PAIR | {"chosen": "Yes. " * 50}]
    documents = read(tmp_path / "a.jsonl", *pairs, odd="skip", longest=100)
    assert len(documents) == 2
    (note,) = documents.notes
    assert note.endswith("2 of 3 pairs left out: 1 with equal answers, 1 with more than 100 bytes")
    with pytest.raises(ValueError, match="no pair: all 1 are left out: 1 with equal answers"):
        read(tmp_path / "a.jsonl", pairs[1], odd="skip")


@pytest.fixture
def corpus(tmp_path):
    pairs = [
        {"prompt": f"What is {i} + {i}?", "chosen": f"It is {2 * i}.", "rejected": "No" + "." * i}
        for i in range(20)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return Data(Pairs(str(tmp_path / "a.jsonl")), validation=0.2, test=0.2, alike=None).load()


def test_pairs_stay_together_in_splits_and_batches(corpus):
    assert isinstance(corpus, PairedTexts)
    for name in SPLITS:
        names = [n.split("/") for n in corpus.documents(name).names]
        assert [n[2] for n in names] == ["chosen", "rejected"] * (len(names) // 2)
        assert all(a[1] == b[1] for a, b in zip(names[::2], names[1::2], strict=True))
    decode = corpus.tokenizer.decode
    count = len(corpus.documents("train")) // 2
    seen = set()
    for batch in islice(corpus.batches(64, 2, seed=0), count):
        tokens, targets = batch["tokens"], batch["targets"]
        assert tokens.shape == (2, 64)
        rows = zip(tokens, batch["segments"], strict=True)
        texts = [decode(row[segments > 0][1:]) for row, segments in rows]
        prompts = {text.partition(b"ASSISTANT")[0] for text in texts}
        assert len(prompts) == 1
        seen |= prompts
        answers = [decode(row[row >= 0]) for row in targets]
        assert answers[0].startswith(b" It is")
        assert answers[1].startswith(b" No")
    assert len(seen) == count
    with pytest.raises(ValueError, match="a batch of 3 rows is no whole number of pairs"):
        corpus.batches(64, 3, seed=0)


def test_batches_resume(corpus):
    whole = iter(corpus.batches(64, 4, seed=1))
    next(whole)
    state = whole.get_state()
    there = next(whole)
    again = iter(corpus.batches(64, 4, seed=1))
    again.set_state(state)
    for name, array in next(again).items():
        np.testing.assert_array_equal(array, there[name])


def test_a_reference_travels_with_its_tokens(corpus):
    rows = corpus.rows(64, "train")
    pairs = [rows[index] for index in range(len(rows))]
    ids = np.concatenate([pair["targets"][pair["segments"] > 0] for pair in pairs])
    known = corpus.with_reference({"train": ids.astype(np.float32)})
    batch = next(iter(known.batches(64, 8, seed=0)))
    real = batch["segments"] > 0
    np.testing.assert_array_equal(batch["reference"], np.where(real, batch["targets"], 0))


def test_preferred_answers_are_measured(corpus):
    found = corpus.targets(SameTargets(contexts=(4, 8), span=4))
    assert found.texts
    assert all(text.name.endswith("/chosen") for text in found.texts)


def test_what_does_not_fit(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"pairs do not fit into rows of 48 tokens; the longest"):
        corpus.rows(48, "train")
    for settings in ({"split": "within"}, {"at_least": 10}):
        with pytest.raises(ValueError, match="has pairs, which stay whole"):
            Data(corpus.data.source, **settings).load()
