import json
import math

import numpy as np
import pytest

from lcx.evaluation.metrics import DocumentScore, compare, context_score, jsonable, pooled_score
from lcx.protocols.measures import ACCURACY, BITS, PERPLEXITY

ALL = PERPLEXITY, BITS, ACCURACY


def documents(nats: list[float], tokens: list[int] | None = None) -> list[DocumentScore]:
    tokens = tokens or [64] * len(nats)
    return [
        {
            "name": f"doc {i}", "nll": x * n, "tokens": n, "bytes": 4 * n, "hits": n // 2,
            "spans": 2,
        }
        for i, (x, n) in enumerate(zip(nats, tokens, strict=True))
    ]  # fmt: skip


def score(nats: list[float], context: int = 64, **more):
    return context_score(context, documents(nats, **more), context + 64, ALL)


def draws(n: int, mean: float = 1.3, seed: int = 0) -> list[float]:
    return (mean + 0.3 * np.random.default_rng(seed).standard_normal(n)).tolist()


def test_a_uniform_guess_over_256_bytes():
    made = documents([math.log(256)] * 2)
    point = context_score(8, [{**d, "bytes": d["tokens"]} for d in made], 8, ALL)
    assert point["ppl"] == pytest.approx(256, rel=1e-14)
    assert point["bits_per_byte"] == pytest.approx(8, rel=1e-14)
    assert point["bits_ci95"] == pytest.approx([8, 8], rel=1e-14)


def test_perplexity_beyond_float64_is_infinite():
    assert score([1e6])["ppl"] == math.inf
    assert score([math.inf])["ppl"] == math.inf
    assert math.isnan(score([math.nan])["ppl"])


def test_tokens_weigh_not_documents():
    point = score([1.0, 3.0], tokens=[30, 10])
    assert point["ppl"] == pytest.approx(math.exp(60 / 40), rel=1e-14)
    assert point["bits_per_byte"] == pytest.approx(60 / math.log(2) / 160, rel=1e-14)
    assert (point["context"], point["reach"], point["tokens"]) == (64, 128, 40)
    assert len(point["documents"]) == 2


def test_interval_agrees_with_the_normal_approximation():
    nats = draws(400)
    low, high = score(nats)["ci95"]
    width = 2 * 1.96 * np.std(nats) / math.sqrt(len(nats))
    # Student's t of 399 degrees of freedom is 0.3% wider than the normal; n - 1 for n: 0.13%.
    assert math.log(high / low) == pytest.approx(width, rel=0.02)
    assert math.log(low * high) / 2 == pytest.approx(np.mean(nats), rel=1e-12)


def test_accuracy_stays_a_share():
    made = [{**d, "hits": d["tokens"] - (i == 0)} for i, d in enumerate(documents([1.0] * 4))]
    point = context_score(64, made, 64, ALL)
    low, high = point["accuracy_ci95"]
    assert low < point["accuracy"] < high == 1.0


def test_one_document_has_no_interval():
    point = score([1.0])
    assert point["ppl"] == pytest.approx(math.e, rel=1e-14)
    assert all(map(math.isnan, point["ci95"]))
    found = compare([point], [point], PERPLEXITY, paired_runs=True)
    assert found["value"] == 1
    assert all(map(math.isnan, [*found["ci95"], found["p_value"]]))


def test_a_diverged_document_leaves_no_interval():
    point = score([1.0, math.nan, 2.0])
    assert math.isnan(point["ppl"])
    assert all(map(math.isnan, point["ci95"]))


@pytest.mark.parametrize(
    ("context", "docs", "message"),
    [
        (0, documents([1.0]), "at least one token"),
        (64, [], "no documents"),
        (64, documents([1.0], tokens=[0]), "at least one of the targets' tokens"),
    ],
)
def test_a_point_needs_a_context_and_documents_and_targets(context, docs, message):
    with pytest.raises(ValueError, match=message):
        context_score(context, docs, 64, ALL)


def test_runs_pool_in_nats_and_widen_the_interval():
    runs = [score([x + d for x in draws(24)]) for d in (-0.1, 0.0, 0.1)]
    pooled, middle = pooled_score(runs, ALL), runs[1]
    assert pooled["ppl"] == pytest.approx(middle["ppl"], rel=1e-12)  # not the mean of three exps
    assert pooled["ci95"][0] < middle["ci95"][0] < middle["ci95"][1] < pooled["ci95"][1]
    counts = {key: pooled[key] for key in ("documents", "spans", "tokens", "seeds", "reach")}
    assert counts == {"documents": 24, "spans": 48, "tokens": 24 * 64, "seeds": 3, "reach": 128}
    with pytest.raises(ValueError, match="cannot pair 24 documents with 2"):
        pooled_score([runs[0], score([1.0, 2.0])], ALL)


def test_pairing_sees_what_separate_intervals_hide():
    nats = draws(24)
    worse = [x + 0.02 + 0.001 * y for x, y in zip(nats, draws(24, 0.0, seed=1), strict=True)]
    a, b = score(worse), score(nats)
    found = compare([a], [b], PERPLEXITY, paired_runs=False)
    low, high = found["ci95"]
    assert found["value"] == pytest.approx(a["ppl"] / b["ppl"], rel=1e-12)
    assert 1.01 < low < found["value"] < high < 1.03
    assert b["ci95"][1] > a["ci95"][0]  # apart, the two intervals overlap
    bits = compare([a], [b], BITS, paired_runs=False)
    assert bits["value"] == pytest.approx(a["bits_per_byte"] - b["bits_per_byte"], rel=1e-9)
    assert bits["p_value"] == pytest.approx(found["p_value"], rel=1e-9)


def test_the_other_way_round_is_the_reciprocal():
    a, b = (score(draws(24, seed=s)) for s in (0, 1))
    there = compare([a], [b], PERPLEXITY, paired_runs=False)
    back = compare([b], [a], PERPLEXITY, paired_runs=False)
    assert there["value"] * back["value"] == pytest.approx(1, rel=1e-12)
    assert there["ci95"][0] * back["ci95"][1] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("measure", [PERPLEXITY, BITS, ACCURACY])
def test_a_variant_does_not_differ_from_itself(measure):
    found = compare([score(draws(24))], [score(draws(24))], measure, paired_runs=True)
    same = measure.neutral
    assert found == {"context": 64, "value": same, "ci95": [same, same], "p_value": 1.0}


def test_two_infinities_have_no_ratio():
    point = score([1.0, math.inf])
    assert point["ppl"] == math.inf
    assert math.isnan(compare([point], [point], PERPLEXITY, paired_runs=False)["value"])


def test_only_the_same_targets_pair():
    base = [score([1.0, 2.0])]
    with pytest.raises(ValueError, match="2 documents with 3"):
        compare(base, [score([1.0, 2.0, 3.0])], PERPLEXITY, paired_runs=True)
    shorter = [score([1.0, 2.0], tokens=[64, 32])]
    with pytest.raises(ValueError, match=r"document 1 .*'doc 1' with 64 .*'doc 1' with 32"):
        compare(base, shorter, PERPLEXITY, paired_runs=True)
    other = [score([1.0, 2.0])]
    other[0]["documents"][1]["spans"] += 1
    with pytest.raises(ValueError, match=r"'doc 1' with \d scored spans against 'doc 1' with \d"):
        compare(base, other, BITS, paired_runs=True)
    longer = [score([1.0, 2.0], context=128)]  # the same targets after another context
    assert compare(longer, base, PERPLEXITY, paired_runs=True)["context"] == 128


def test_other_tokenizers_pair_by_bytes():
    """Half as many tokens of the same text, twice as many nats each."""
    nats = draws(24)
    coarse = context_score(
        64,
        [{**d, "tokens": d["tokens"] // 2, "hits": 0} for d in documents(nats)],
        128,
        ALL,
    )
    found = compare([coarse], [score(nats)], BITS, paired_runs=False)
    assert (found["value"], found["p_value"]) == (0, 1)
    with pytest.raises(ValueError, match="cannot pair document 0"):
        compare([coarse], [score(nats)], PERPLEXITY, paired_runs=False)


def test_a_document_whose_tokens_have_no_bytes_pairs_too():
    """Of an answer that ends where a window does, the end of the turn alone may be scored."""
    one, other = (documents(draws(24, seed=seed)) for seed in (0, 1))
    for made in (one, other):
        made[3] |= {"bytes": 0, "tokens": 1}
    a, b = (context_score(64, made, 128, ALL) for made in (one, other))
    found = compare([a], [b], BITS, paired_runs=False)
    assert found["value"] == pytest.approx(a["bits_per_byte"] - b["bits_per_byte"], rel=1e-9)
    assert all(math.isfinite(x) for x in (*found["ci95"], found["p_value"]))


def test_json_is_strict_and_pairs_again_after_a_round_trip():
    scores = [score(x) for x in ([1.0, math.nan], [1.0, 2.0])]
    text = json.dumps(jsonable(scores), allow_nan=False)
    diverged, fine = json.loads(text)
    assert diverged["ppl"] is None
    assert diverged["ci95"] == [None, None]
    assert fine == scores[1]
    assert math.isnan(compare([diverged], [fine], PERPLEXITY, paired_runs=False)["value"])
    assert math.isnan(pooled_score([diverged, fine], ALL)["ppl"])
