import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcx.metrics import (
    DocumentScore,
    bits_per_byte,
    context_score,
    jsonable,
    paired_difference,
    perplexity,
)


def documents(nats: list[float], tokens: list[int] | None = None) -> list[DocumentScore]:
    tokens = tokens or [64] * len(nats)
    return [
        {"name": f"doc {i}", "nll": x * n, "tokens": n, "bytes": 4 * n, "hits": n // 2}
        for i, (x, n) in enumerate(zip(nats, tokens, strict=True))
    ]


def draws(n: int, mean: float = 1.3, seed: int = 0) -> list[float]:
    return (mean + 0.3 * np.random.default_rng(seed).standard_normal(n)).tolist()


def test_a_uniform_guess_over_256_bytes():
    nll = 10 * math.log(256)
    assert perplexity(nll, 10) == pytest.approx(256, rel=1e-14)
    assert bits_per_byte(nll, 10) == pytest.approx(8, rel=1e-14)


def test_perplexity_beyond_float64_is_infinite():
    assert perplexity(1e6, 1) == math.inf
    assert perplexity(math.inf, 1) == math.inf
    assert math.isnan(perplexity(math.nan, 1))


@pytest.mark.parametrize("call", [perplexity, bits_per_byte])
def test_nothing_to_divide_by(call):
    with pytest.raises(ValueError, match="at least one"):
        call(1.0, 0)


def test_tokens_weigh_not_documents():
    score = context_score(128, documents([1.0, 3.0], tokens=[30, 10]))
    assert score["ppl"] == pytest.approx(math.exp(60 / 40), rel=1e-14)
    assert score["bits_per_byte"] == pytest.approx(60 / math.log(2) / 160, rel=1e-14)
    assert (score["context"], score["tokens"], len(score["documents"])) == (128, 40, 2)


def test_interval_agrees_with_the_normal_approximation():
    nats = draws(400)
    low, high = context_score(64, documents(nats))["ci95"]
    width = 2 * 1.96 * np.std(nats) / math.sqrt(len(nats))
    # Measured at 400 documents: the widths differ by 0.01%, the centres by 0.23% of the width.
    assert math.log(high / low) == pytest.approx(width, rel=0.02)
    assert math.log(low * high) / 2 == pytest.approx(np.mean(nats), abs=0.01 * width)


def test_interval_repeats_and_narrows_with_documents():
    def width(n: int) -> float:
        low, high = context_score(64, documents(draws(n)))["ci95"]
        return high - low

    assert width(24) == width(24)
    assert width(24) > 1.5 * width(240) > 0


@given(st.lists(st.floats(0, 20), min_size=2, max_size=6))
def test_interval_lies_within_the_documents(nats):
    low, high = context_score(64, documents(nats))["ci95"]
    slack = 1 + 1e-12
    assert math.exp(min(nats)) <= low * slack
    assert low <= high * slack <= math.exp(max(nats)) * slack**2


def test_one_document_has_no_interval():
    score = context_score(64, documents([1.0]))
    assert score["ppl"] == pytest.approx(math.e, rel=1e-14)
    assert all(map(math.isnan, score["ci95"]))
    difference = paired_difference(score, score)
    assert difference["ratio"] == 1
    assert all(map(math.isnan, difference["ci95"]))


def test_a_diverged_document_leaves_no_interval():
    score = context_score(64, documents([1.0, math.nan, 2.0]))
    assert math.isnan(score["ppl"])
    assert all(map(math.isnan, score["ci95"]))


@pytest.mark.parametrize(
    ("context", "docs", "message"),
    [(0, documents([1.0]), "at least one token"), (64, [], "no documents")],
)
def test_a_point_needs_a_context_and_documents(context, docs, message):
    with pytest.raises(ValueError, match=message):
        context_score(context, docs)


def test_pairing_sees_what_separate_intervals_hide():
    nats = draws(24)
    worse = [x + 0.02 + 0.001 * y for x, y in zip(nats, draws(24, 0.0, seed=1), strict=True)]
    a, b = context_score(64, documents(worse)), context_score(64, documents(nats))
    difference = paired_difference(a, b)
    low, high = difference["ci95"]
    assert difference["ratio"] == pytest.approx(a["ppl"] / b["ppl"], rel=1e-12)
    assert 1.01 < low < difference["ratio"] < high < 1.03
    assert b["ci95"][1] > a["ci95"][0]  # apart, the two intervals overlap


def test_the_other_way_round_is_the_reciprocal():
    a, b = (context_score(64, documents(draws(24, seed=s))) for s in (0, 1))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there["ratio"] * back["ratio"] == pytest.approx(1, rel=1e-12)
    assert there["ci95"][0] * back["ci95"][1] == pytest.approx(1, rel=1e-12)


def test_a_variant_does_not_differ_from_itself():
    score = context_score(64, documents(draws(24)))
    assert paired_difference(score, score) == {"context": 64, "ratio": 1.0, "ci95": [1.0, 1.0]}


def test_two_infinities_have_no_ratio():
    score = context_score(64, documents([1.0, math.inf]))
    assert score["ppl"] == math.inf
    assert math.isnan(paired_difference(score, score)["ratio"])


def test_only_the_same_targets_pair():
    base = context_score(64, documents([1.0, 2.0]))
    with pytest.raises(ValueError, match="context 64 with context 128"):
        paired_difference(base, context_score(128, documents([1.0, 2.0])))
    with pytest.raises(ValueError, match="2 documents with 3"):
        paired_difference(base, context_score(64, documents([1.0, 2.0, 3.0])))
    with pytest.raises(ValueError, match=r"document 1 .*'doc 1' with 64 .*'doc 1' with 32"):
        paired_difference(base, context_score(64, documents([1.0, 2.0], tokens=[64, 32])))


def test_json_is_strict_and_pairs_again_after_a_round_trip():
    scores = [context_score(64, documents(x)) for x in ([1.0, math.nan], [1.0, 2.0])]
    text = json.dumps(jsonable(scores), allow_nan=False)
    diverged, fine = json.loads(text)
    assert diverged["ppl"] is None
    assert diverged["ci95"] == [None, None]
    assert fine == scores[1]
    assert math.isnan(paired_difference(diverged, fine)["ratio"])
