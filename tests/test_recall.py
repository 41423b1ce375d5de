import re

import numpy as np
import pytest

from lcx.data import MQAR, Data, TextFiles
from lcx.protocols import Recall, SameTargets

TASK = MQAR(pairs=(2, 5), vocab=64)


def test_rows_hold_examples_whose_answers_can_be_known():
    texts = TASK.load()
    stream = iter(texts.batches(length=61, batch=3, seed=0))
    seen = set()
    for _ in range(20):
        batch = next(stream)
        for row in range(3):
            tokens, targets, segments, positions = (
                batch[n][row] for n in ("tokens", "targets", "segments", "positions")
            )
            for segment in range(1, segments.max() + 1):
                (at,) = np.nonzero(segments == segment)
                example, answers = tokens[at], targets[at]
                np.testing.assert_array_equal(positions[at], np.arange(len(at)))
                n = len(at) // 4
                seen.add(n)
                assert example[0] == texts.tokenizer.bos
                keys, values = example[1 : 2 * n : 2], example[2 : 2 * n + 1 : 2]
                assert (keys < 32).all()
                assert (values >= 32).all()
                assert len(set(keys)) == n
                memory = dict(zip(keys.tolist(), values.tolist(), strict=True))
                assert (answers[: 2 * n + 1] == -1).all()
                assert sorted(example[2 * n + 1 :: 2]) == sorted(keys)
                asked = example[2 * n + 1 :: 2].tolist()
                assert [memory[key] for key in asked] == answers[2 * n + 1 :: 2].tolist()
                assert (answers[2 * n + 2 :: 2] == -1).all()
            assert (segments == 0).sum() < 4 * 5  # no room was left for another example
    assert seen == {2, 5}


def test_the_stream_resumes_and_depends_on_the_seed():
    texts = TASK.load()
    stream = iter(texts.batches(length=40, batch=2, seed=7))
    next(stream)
    state = stream.get_state()
    expected = next(stream)["tokens"]
    again = iter(texts.batches(length=40, batch=2, seed=7))
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["tokens"], expected)
    other = next(iter(texts.batches(length=40, batch=2, seed=8)))["tokens"]
    assert not np.array_equal(other, expected)


def test_windows_score_every_pair_once():
    texts, protocol = TASK.load(), Recall(contexts=(8, 20))
    documents = texts.targets(protocol).texts
    assert len({tuple(text.ids) for text in documents}) == len(documents) == 64
    for text in documents:
        ids = text.ids
        for window, n in zip(protocol.excerpts(text, texts.tokenizer.bos), (2, 5), strict=True):
            assert len(window.tokens) == 1 + 4 * n
            memory = dict(zip(ids[: 2 * n : 2].tolist(), ids[1 : 2 * n : 2].tolist(), strict=True))
            asked = {
                int(window.tokens[s.first - 1]): int(window.tokens[s.first]) for s in window.scores
            }
            assert asked == memory
            assert all(s.context == 4 * n and s.last == s.first + 1 for s in window.scores)


def test_validation_and_test_differ():
    texts = TASK.load()
    a, b = (texts.targets(Recall((40,), split)).texts[0] for split in ("validation", "test"))
    assert not np.array_equal(a.ids, b.ids)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MQAR(pairs=()), "pairs must be positive"),
        (lambda: MQAR(pairs=(0, 4)), "pairs must be positive"),
        (lambda: MQAR(pairs=(40,), vocab=64), "at least 80"),
        (lambda: MQAR(vocab=65), "must be even"),
        (lambda: Recall(contexts=(64, 66)), "a pair takes 4 tokens"),
        (lambda: TASK.load().check(19, Recall((8,))), "5 pairs take 20 tokens"),
        (lambda: TASK.load().check(64, Recall((512,))), "take a vocabulary of 256"),
        (lambda: TASK.load().check(64, SameTargets()), "measured by Recall, not by SameTargets"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_text_is_not_measured_by_recall(texts):
    with pytest.raises(ValueError, match="Recall measures MQAR"):
        Data(source=TextFiles(f"{texts}/*.txt")).load().check(64, Recall())
