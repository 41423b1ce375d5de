"""Loops seen while a text is written; repetition taken out of finished texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcx.repetition.filters import (
    summary,
    without_near_copies,
    without_repeated_lines,
    without_repeated_sentences,
)
from lcx.repetition.loops import RepetitionGuard, period

few = settings(deadline=None, max_examples=25)

# ------------------------------------------------------------------------------ loops


def fresh(length: int, first: int = 1000) -> list[int]:
    """Tokens that never come again."""
    return list(range(first, first + length))


@pytest.mark.parametrize("length", [1, 2, 7, 50, 64, 100, 128])
def test_a_loop_is_seen_half_a_window_after_it_began(length):
    """Whatever its period, and where its second turn begins."""
    guard = RepetitionGuard(n=4, window=128, share=0.5)
    text = fresh(300) + 4 * list(range(length)) + 200 * list(range(length))
    watch = guard.watch()
    found = [(t, start) for t, token in enumerate(text) if (start := watch.add(token)) is not None]
    began = 300 + length
    assert found[0] == (began + 64 + 3 - 1, began)
    assert {start for _, start in found} == {began}
    assert guard.loop(text) == began
    assert period(text, began) == length


def test_a_loop_longer_than_the_window_is_not_seen():
    assert RepetitionGuard(window=128).loop(fresh(129) * 4) is None
    assert RepetitionGuard(window=129).loop(fresh(129) * 4) == 129


def test_a_loop_whose_turns_differ_is_seen():
    """A list whose numbers count on: 6 of 10 4-grams hold no number."""
    turns = [[5000 + i, *range(9)] for i in range(40)]
    text = [*fresh(100), *np.concatenate(turns).tolist()]
    start = RepetitionGuard(n=4, window=64, share=0.5).loop(text)
    assert start == 100 + 10 + 1  # after the second turn's number
    assert period(text, start) is None
    assert RepetitionGuard(n=4, window=64, share=0.7).loop(text) is None


def test_a_text_that_goes_on_is_in_no_loop():
    guard = RepetitionGuard(n=2, window=16, share=0.5)
    looped = fresh(20) + [1, 2, 3] * 8
    assert guard.loop(looped) == 23
    assert guard.loop(looped + fresh(16, first=9000)) is None
    assert guard.loop(looped + fresh(16, first=9000) + [4] * 20) == 20 + 24 + 16 + 1


def test_only_whole_windows_speak():
    """Three tokens are no loop yet; the share is of the window, not of what there is."""
    guard = RepetitionGuard(n=1, window=8, share=1.0)
    assert guard.loop([]) is guard.loop([1]) is guard.loop([1] * 8) is None
    assert guard.loop([1] * 9) == 1
    assert guard.loop(["a"] * 9) == 1
    assert RepetitionGuard(n=4).loop([1, 2, 3]) is None


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from([0.25, 0.5, 0.75, 1.0]),
)
def test_the_watch_is_its_definition_at_every_token(text, n, window, share):
    """From all n-grams anew; shares are exact in binary."""
    guard = RepetitionGuard(n, window, share)
    watch, expected = guard.watch(), None
    for t, token in enumerate(text, 1):
        grams = [tuple(text[i : i + n]) for i in range(t - n + 1)]
        repeats = [g in grams[max(0, i - window) : i] for i, g in enumerate(grams)]
        if sum(repeats[-window:]) < share * window:
            expected = None
        elif expected is None:  # the stretch within the window that exceeds the share most
            stretches = {i: sum(repeats[i:]) - share * len(repeats[i:]) for i in range(len(grams))}
            expected = max((i for i in list(stretches)[-window:] if repeats[i]), key=stretches.get)
        assert watch.add(token) == expected


@given(st.lists(st.integers(0, 1), min_size=1, max_size=20), st.data())
def test_periods_are_the_shortest(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    fits = [
        p
        for p in range(1, start + 1)
        if all(text[t] == text[t - p] for t in range(start, len(text)))
    ]
    assert period(text, start) == min(fits, default=None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"share": 0.0}, "above 0 and at most 1, not 0.0"),
        ({"share": 1.5}, "above 0 and at most 1, not 1.5"),
    ],
)
def test_a_guard_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RepetitionGuard(**wrong)


def test_a_start_outside_the_text_is_refused():
    with pytest.raises(ValueError, match="a place among 2 tokens, not 2"):
        period([1, 2], 2)


# ------------------------------------------------------------------------------ filters

CHANCE = (
    "The rain fell on the roof. He opened the door. The rain fell on the roof.\n\n"
    "Yes. He  opened\nthe door. Yes.\n"
)


def test_repeated_sentences_go():
    """The second copies; paragraphs stay apart, and what is short may come again."""
    found = without_repeated_sentences([CHANCE])
    assert found.texts == ["The rain fell on the roof. He opened the door.\n\nYes. Yes.\n"]
    assert (found.before.repeated_sentences, found.after.repeated_sentences) == (3 / 6, 1 / 4)
    assert (found.before.words, found.after.words) == (22, 12)
    assert found.before.seq_rep_4 > found.after.seq_rep_4 == 0
    whole = without_repeated_sentences([CHANCE], shortest=1)
    assert whole.after.repeated_sentences == 0


def test_repeated_lines_go_with_the_blank_ones_after_them():
    text = "a line of words\n\n\nanother line\n  A line of  words\n\n}\n\n}\n"
    found = without_repeated_lines([text])
    assert found.texts == ["a line of words\n\n\nanother line\n}\n\n}\n"]
    assert (found.before.repeated_lines, found.after.repeated_lines) == (2 / 5, 1 / 4)


@few
@given(st.lists(st.sampled_from(["One of two.", "Yes.", " ", "\n", "\n\n", "no end"]), max_size=12))
def test_filters_keep_what_is_new_and_end(pieces):
    """Every sentence and line stays once, in order; a second time there is nothing to do."""
    text = "".join(pieces)
    for without in (without_repeated_sentences, without_repeated_lines):
        left = without([text], shortest=1).texts
        assert without(left, shortest=1).texts == left
        assert list(dict.fromkeys(text.split())) == list(dict.fromkeys(left[0].split()))
        assert without([text], shortest=1000).texts == [text]


def test_near_copies_go():
    base = " ".join(f"word{i}" for i in range(100))
    near = base.replace("word50", "Other")  # 91 of 101 shingles are shared
    far = " ".join(f"word{i}" for i in range(50, 150))
    found = without_near_copies([base, far, near, base.upper(), "", "", "so short", "so short"])
    assert found.texts == [base, far, "", "so short"]
    assert (found.before.texts, found.after.texts) == (8, 4)
    assert found.after.distinct_4 > found.before.distinct_4
    assert near in without_near_copies([base, near], threshold=0.91).texts
    assert near not in without_near_copies([base, near], threshold=0.9).texts
    with pytest.raises(ValueError, match="at most 1, not 0"):
        without_near_copies([base], threshold=0)
    with pytest.raises(ValueError, match="at least 1 word, not 0"):
        without_near_copies([base], shingle=0)


@few
@given(st.lists(st.lists(st.sampled_from("ab"), max_size=8), max_size=8))
def test_near_copies_are_by_jaccard(texts):
    def shingles(text):
        return {tuple(text[i : i + 3]) for i in range(max(len(text) - 3, 0) + 1)}

    kept = []
    for text in texts:
        sets = [(shingles(text), shingles(other)) for other in kept]
        if all(len(a & b) / len(a | b) < 0.5 for a, b in sets):
            kept.append(text)
    found = without_near_copies([" ".join(t) for t in texts], threshold=0.5, shingle=3)
    assert found.texts == [" ".join(t) for t in kept]


def test_of_no_text_there_is_nothing_to_say():
    found = summary([])
    assert found[:2] == (0, 0)
    assert np.isnan(found[2:]).all()
