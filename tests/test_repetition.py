"""How texts repeat themselves and each other: goldens by hand, and plain forms on random texts."""

import math
from collections import Counter
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcx.evaluation import intervals
from lcx.repetition.measures import (
    distinct,
    distinct_of_all,
    diversity,
    entropy,
    longest_run,
    rep,
    repeated,
    same_as_before,
    seq_rep,
    simctg,
    text_diversity,
    uniq,
    wrep,
)
from lcx.repetition.ngrams import ngrams, words
from lcx.repetition.ratios import Ratio, by_length, ratios
from lcx.repetition.samples import by_prompt, self_bleu, similarities
from lcx.repetition.sentences import lines, sentences

untimed = settings(deadline=None, max_examples=50)

GOLDEN = [1, 2, 3, 4, 1, 2, 3, 4]
TEXT = st.lists(st.integers(0, 3), max_size=30)
TEXTS = st.lists(TEXT, min_size=1, max_size=5)


def grams(text, n) -> list[tuple]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


# ------------------------------------------------------------------------------ within a text


def test_goldens():
    assert seq_rep(GOLDEN, 4) == (1, 5)  # 1234 2341 3412 4123 1234: 0.2
    assert seq_rep(GOLDEN, 1) == (4, 8)
    assert distinct(GOLDEN, 2) == (4, 8)
    assert text_diversity(GOLDEN) == (pytest.approx((1 - 3 / 7) * (1 - 2 / 6) * (1 - 1 / 5)), 1)
    assert entropy(GOLDEN) == (16.0, 8)  # four tokens, equally often: 2 bits each
    assert entropy([5, 5, 5]) == (0.0, 3)
    assert same_as_before([1, 1, 2, 2, 2, 1]) == (3, 5)
    assert longest_run([1, 1, 2, 2, 2, 1]) == (3, 6)
    assert repeated(["a", "b", "a", "a"]) == (2, 4)
    assert uniq([[1, 2], [2, 3], []]) == 3
    assert distinct_of_all([[1, 2, 3], [1, 2, 4]], 2) == 3 / 6


@pytest.mark.parametrize("text", [[], [7], np.zeros(0, np.int32), np.array([7], np.uint16)])
def test_a_text_too_short_has_nothing_to_count(text):
    assert seq_rep(text, 4) == text_diversity(text) == entropy(text, 2) == (0, 0)
    assert distinct(text, 2) == (0, len(text))
    assert same_as_before(text) == (0, 0)
    assert longest_run(text) == (len(text), len(text))
    assert repeated([]) == rep([], [], 16) == (0, 0)


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="not a string: words"):
        seq_rep("the cat", 2)
    with pytest.raises(TypeError, match="not float64 numbers"):
        seq_rep(np.array([0.5, 1.0]), 2)
    with pytest.raises(ValueError, match="not n = 0"):
        seq_rep(GOLDEN, 0)
    with pytest.raises(ValueError, match=r"each at least 1, not \(0,\)"):
        by_length(seq_rep, [GOLDEN], [0])
    with pytest.raises(ValueError, match="some numbers of tokens"):
        by_length(seq_rep, [GOLDEN], [])


@untimed
@given(TEXTS, st.integers(1, 5))
def test_ngrams_are_equal_where_their_numbers_are(texts, n):
    """In all texts alike; as ids, as words, and as arrays of any integers."""
    plain = [g for text in texts for g in grams(text, n)]
    for form in (
        texts,
        [[str(t) for t in text] for text in texts],
        [np.array(text, np.uint16) * 20000 for text in texts],
    ):
        found = ngrams(form, n)
        assert [len(x) for x in found] == [len(grams(text, n)) for text in texts]
        numbers = [int(x) for row in found for x in row]
        assert len(set(zip(numbers, plain, strict=True))) == len(set(numbers)) == len(set(plain))


@untimed
@given(TEXT, st.integers(1, 5))
def test_measures_of_a_text_are_their_definitions(text, n):
    found = grams(text, n)
    assert seq_rep(text, n) == (len(found) - len(set(found)), len(found))
    assert distinct(text, n) == (len(set(found)), len(text))
    p = np.array([*Counter(found).values()]) / max(len(found), 1)
    assert entropy(text, n).part == pytest.approx(-len(found) * (p * np.log2(p)).sum(), abs=1e-9)
    stretches = ((i, j) for i in range(len(text)) for j in range(i + 1, len(text) + 1))
    runs = [j - i for i, j in stretches if len(set(text[i:j])) == 1]
    assert longest_run(text).part == max(runs, default=0)
    assert same_as_before(text).part == sum(a == b for a, b in pairwise(text))


# ------------------------------------------------------------------------------ conventions


def test_the_two_conventions():
    """A text of 8 tokens with a repeat and one of 5 without, and one too short to say anything."""
    texts = [GOLDEN, [1, 2, 3, 4, 5], [1, 2]]
    found = ratios(seq_rep, texts)
    assert found.mean("macro") == pytest.approx((1 / 5 + 0 / 2) / 2)
    assert found.mean("pooled") == pytest.approx(1 / 7)
    assert math.isnan(ratios(seq_rep, [[1, 2]]).mean("macro"))
    assert math.isnan(ratios(seq_rep, []).mean("pooled"))

    each = [(1 - 3 / 7) * (1 - 2 / 6) * (1 - 1 / 5), 1.0]
    assert diversity(texts, "macro") == pytest.approx(np.mean(each))
    pooled = (1 - 3 / 12) * (1 - 2 / 9) * (1 - 1 / 7)  # the text of 2 has a 2-gram
    assert diversity(texts, "pooled") == pytest.approx(pooled)


def test_simctg_loses_the_last_ngram():
    """By its script: in this text the repeat of a b c d is the last 4-gram, and is not seen."""
    found = simctg(["a b c d a b c d"])
    assert found["rep-4"] == 0.0
    assert found["rep-3"] == 20.0
    assert found["rep-2"] == 33.33
    assert found["diversity"] == pytest.approx(0.6667 * 0.8)


@untimed
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=5, max_size=30), min_size=1, max_size=4))
def test_simctg_is_its_loop(texts):
    rates = {}
    for n in (2, 3, 4):
        unique = total = 0
        for text in texts:
            seen, end = set(), n
            while end < len(text):
                seen.add(tuple(text[end - n : end]))
                total, end = total + 1, end + 1
            unique += len(seen)
        rates[n] = round((1 - unique / total) * 100, 2)
    found = simctg([" ".join(text) for text in texts])
    # at a half of 0.01 per cent the two may round apart
    assert [found[f"rep-{n}"] for n in rates] == pytest.approx([*rates.values()], abs=0.011)


@untimed
@given(TEXTS)
def test_by_length_is_the_measure_of_what_is_cut(texts):
    lengths = (1, 4, 9, 100)
    found = by_length(seq_rep, texts, lengths)
    for i, length in enumerate(lengths):
        for j, text in enumerate(texts):
            assert (found.part[i, j], found.whole[i, j]) == seq_rep(text[:length])
    assert found.mean("macro").shape == (4,)


def test_curves_have_intervals_over_prompts():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 9, 64) for _ in range(20)]
    found = by_length(partial(seq_rep, n=2), texts, (16, 64))
    for convention in ("macro", "pooled"):
        sums, weights = found.scores(convention)
        for i, value in enumerate(found.mean(convention)):
            estimate = intervals.mean(sums[i][None], weights[i])
            low, high = estimate.interval()
            assert estimate.value == pytest.approx(value)
            assert low < value < high


# ------------------------------------------------------------------------------ predictions


def test_repeats_among_predictions():
    """l = 2. Predictions in brackets; * among the last two targets, ! and wrong.

    targets  5 6 5 7 7; predictions 5, 5*!, 5*, 9, 7*
    """
    targets, predictions = [5, 6, 5, 7, 7], [5, 5, 5, 9, 7]
    assert rep(predictions, targets, 2) == (3, 5)
    assert wrep(predictions, targets, 2) == (1, 5)
    assert rep(targets, targets, 2) == (2, 5)
    assert wrep(targets, targets, 2) == (0, 5)
    with pytest.raises(ValueError, match="1 predictions, 2 targets"):
        rep([1], [1, 2], 2)
    with pytest.raises(ValueError, match="not 0"):
        rep([1], [1], 0)


@untimed
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=30), st.integers(1, 8))
def test_repeats_among_predictions_are_their_definition(pairs, last):
    predictions, targets = [a for a, _ in pairs], [b for _, b in pairs]
    again = [a in targets[max(0, t - last) : t] for t, a in enumerate(predictions)]
    wrong = [a != b for a, b in pairs]
    assert rep(predictions, targets, last) == (sum(again), len(pairs))
    assert wrep(predictions, targets, last).part == sum(np.logical_and(again, wrong))


# ------------------------------------------------------------------------------ sentences


def test_sentences_and_lines():
    text = (
        'Mr. Smith\nwent home. "Why?" he asked.  Why... \n\n mr. smith went HOME.\n\n\n- one\n- one'
    )
    assert sentences(text) == [
        "mr. smith went home.",
        '"why?"',
        "he asked.",
        "why...",
        "mr. smith went home.",
        "- one - one",
    ]
    assert repeated(sentences(text)) == (1, 6)
    assert lines("a\n\n \nb\n\nA\n") == ["a", "b", "a"]
    assert repeated(lines("a\n\n\n\nb")) == (0, 2)  # blank lines are no duplicates
    assert sentences("行く。来る！行く。") == ["行く。", "来る！", "行く。"]
    assert sentences(" \n\n ") == lines("") == []


# ------------------------------------------------------------------------------ several texts


def test_self_bleu_by_hand():
    """a b c d e against a b c d f: 4/5, 3/4, 2/3, 1/2 match, and the other way round."""
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert self_bleu([words("a b c d e"), words("a b c d f")]) == pytest.approx([expected] * 2)
    assert self_bleu([GOLDEN, GOLDEN, [9, 8]]) == pytest.approx([1, 1, 0])
    assert self_bleu([[], [1]]) == pytest.approx([0, 0])
    # a a a: of the three a one is in the other text; a: shorter than a a a, whose length is 3
    assert self_bleu([[1, 1, 1], [1]], n=1) == pytest.approx([1 / 3, math.exp(1 - 3)])
    with pytest.raises(ValueError, match="at least 2 are needed, not 1"):
        self_bleu([GOLDEN])


def plain_bleu(i: int, texts, n: int) -> float:
    """BLEU of text i, the others as references, as its papers define it."""
    text, others = texts[i], [*texts[:i], *texts[i + 1 :]]
    precisions = []
    for k in range(1, n + 1):
        counts = Counter(grams(text, k))
        most = {g: max(Counter(grams(other, k))[g] for other in others) for g in counts}
        matches = sum(min(c, most[g]) for g, c in counts.items())
        if k == 1 and not matches:
            return 0.0
        precisions.append((matches or 0.1) / max(sum(counts.values()), 1))
    closest = min((abs(len(other) - len(text)), len(other)) for other in others)[1]
    brevity = min(1.0, math.exp(1 - closest / len(text)))
    return brevity * math.prod(precisions) ** (1 / n)


@untimed
@given(st.lists(TEXT, min_size=2, max_size=4), st.integers(1, 4))
def test_self_bleu_is_its_definition(texts, n):
    expected = [plain_bleu(i, texts, n) for i in range(len(texts))]
    assert self_bleu(texts, n) == pytest.approx(expected, rel=1e-9)


@untimed
@given(st.lists(TEXT, max_size=5), st.integers(1, 3))
def test_similarities_are_jaccards(texts, n):
    found = similarities(texts, n)
    assert found.shape == (len(texts), len(texts))
    sets = [set(grams(text, n)) for text in texts]
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            expected = len(a & b) / len(a | b) if a | b else math.nan
            assert found[i, j] == pytest.approx(expected, nan_ok=True)


def test_similarity_within_and_between_prompts():
    """Two samples of p share all, one of q half with each of them; a text too short counts not."""
    texts = [[1, 2, 3], [1, 2, 3], [1, 2, 9, 9], [1]]
    alike = by_prompt(similarities(texts, 2), ["p", "p", "q", "r"])
    assert alike.within.part.tolist() == [2, 0, 0]
    assert alike.within.whole.tolist() == [2, 0, 0]
    # 12 23 and 12 29 99 share one of four; of the 2-grams of (1,) there are none: 0 of 2, 0 of 3
    assert alike.between.part == pytest.approx([0.5, 0.5, 0])
    assert alike.between.whole.tolist() == [4, 3, 3]
    assert alike.within.mean("macro") == 1
    with pytest.raises(ValueError, match="1 prompts, 4 texts"):
        by_prompt(similarities(texts, 2), ["p"])


@untimed
@given(TEXTS, st.data())
def test_prompts_average_over_pairs(texts, data):
    prompts = data.draw(st.lists(st.sampled_from("pqr"), min_size=len(texts), max_size=len(texts)))
    alike = similarities(texts, 1)
    found = by_prompt(alike, prompts)
    for k, prompt in enumerate(dict.fromkeys(prompts)):
        same, other = [], []
        for i, j in combinations(range(len(texts)), 2):
            if np.isfinite(alike[i, j]):
                if prompts[i] == prompts[j] == prompt:
                    same += [alike[i, j]] * 2
                elif prompt in (prompts[i], prompts[j]):
                    other.append(alike[i, j])
        assert (found.within.part[k], found.within.whole[k]) == pytest.approx(
            (sum(same), len(same))
        )
        expected = (sum(other), len(other))
        assert (found.between.part[k], found.between.whole[k]) == pytest.approx(expected)


def test_a_ratio_is_plain_numbers():
    assert ratios(lambda _: Ratio(1, 2), [[], []]).mean("pooled") == 0.5
