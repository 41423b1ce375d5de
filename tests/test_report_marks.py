"""What a report may say of variants, and what not."""

import copy
import json
import math

import numpy as np
import pytest
from rich.console import Console

from lcx.evaluation.metrics import about
from lcx.protocols import PROTOCOLS, ByPosition, SameTargets
from lcx.report.comparable import decoded_measures
from lcx.report.curves import draw_measure
from lcx.report.look import LIGHT
from lcx.report.pictures import pictures_of
from lcx.report.sentences import (
    bands_in_words,
    comparisons_in_words,
    finding,
    gains_in_words,
    weights_in_words,
)
from lcx.report.summary import bold_variants, summarise
from lcx.report.writer import print_table, write_report
from tests.reports import FAR, LEVEL, ONCE, QUESTION, evaluation, runs


def marks(report) -> list[dict]:
    return [
        x for points in report["differences"]["variants"].values() for x in points if x["marked"]
    ]


def test_three_runs_of_one_model_are_not_told_apart():
    """One seed each: variants trained apart are not ranked, however far apart they seem."""
    rng = np.random.default_rng(0)
    results = [
        evaluation(name, {c: x * far for c, x in LEVEL.items()}, chance=rng)
        for name, far in (("a", 1), ("b", 1.13), ("c", 1.17))
    ]
    report = summarise(results, {})
    assert marks(report) == []
    assert not any(bold_variants(report).values())
    assert not any(x["training_chance"] for x in report["differences"]["variants"]["b"])
    assert "another training would order the variants so is not known" in finding(report)
    assert "since each variant was trained once" in bands_in_words(report)
    assert "no difference between them is marked" in comparisons_in_words(report)


@pytest.mark.slow
def test_groups_of_one_distribution_are_seldom_told_apart():
    """Of 100 pages of three variants with three seeds each, at most 5% have a mark. Measured: 0."""
    wrong = 0
    for page in range(100):
        results = [
            result
            for i, name in enumerate("abc")
            for result in runs(name, {64: 4.5, 448: 4.4}, 3, chance=3 * page + i, documents=12)
        ]
        report = summarise(results, {})
        wrong += bool(marks(report)) or any(bold_variants(report).values())
    assert wrong <= 5


def test_a_real_difference_of_three_seeds_is_told_apart():
    worse = {c: 1.3 * x for c, x in LEVEL.items()}
    report = summarise([*runs("a", LEVEL, 3, chance=0), *runs("b", worse, 3, chance=1)], {})
    assert [x["context"] for x in marks(report)] == list(LEVEL)
    assert bold_variants(report) == {c: ["a"] for c in LEVEL}
    close = {c: 1.01 * x for c, x in LEVEL.items()}
    tied = [*runs("a", LEVEL, 3, chance=0), *runs("b", close, 3, chance=1)]
    report = summarise([*tied, *runs("c", worse, 3, chance=2)], {})
    assert bold_variants(report) == {c: ["a", "b"] for c in LEVEL}
    assert "cannot be told apart from it" in finding(report)


def test_the_same_weights_are_compared_with_one_seed():
    """A variant of no steps is another way of reading the same weights: documents alone decide."""
    stretched = evaluation("stretched", LEVEL, trainings=["softmax"])
    apart = evaluation("apart", LEVEL)
    report = summarise([evaluation("softmax", FAR), stretched, apart], {})
    assert len(marks(report)) == len(FAR)
    assert {x["variant"] for x in marks(report)} == {"stretched"}
    assert not any(bold_variants(report).values())  # nothing is known of the third


def test_seeds_are_paired_where_one_starts_from_the_other():
    rng = np.random.default_rng(0)
    begun, later = [], []
    for seed, shift in enumerate((-0.3, 0.0, 0.3)):  # what a seed made of both
        levels = {c: x * math.exp(shift) for c, x in LEVEL.items()}
        begun.append(evaluation("begun", levels, seed=seed))
        better = {c: 0.95 * x * math.exp(0.002 * rng.standard_normal()) for c, x in levels.items()}
        later.append(evaluation("later", better, seed=seed, trainings=["begun", "later"]))
    assert len(marks(summarise([*begun, *later], {}))) == len(LEVEL)
    apart = [{**r, "trainings": ["later"]} for r in later]
    assert marks(summarise([*begun, *apart], {})) == []


def test_published_weights_are_taken_as_they_are():
    published = evaluation("published", FAR) | {"trainings": [], "published": "Pretrained('x')"}
    tuned = [r | {"published": "Pretrained('x')"} for r in runs("tuned", LEVEL, 3, chance=0)]
    report = summarise([published, *tuned], {})
    assert {x["context"] for x in marks(report)} >= {1024, 2048}
    assert all(x["training_chance"] for x in report["differences"]["variants"]["tuned"])


def test_tokenizers_are_compared_in_bits_per_byte():
    bpe = copy.deepcopy(ONCE[0]) | {"variant": "bpe", "trainings": ["bpe"]}
    bpe["data"] |= {"tokenizer": "BPE(512)", "fingerprint": "cd34"}
    for point in bpe["contexts"]:
        for document in point["documents"]:
            document["tokens"] //= 2
    report = summarise([ONCE[0], bpe], {})
    assert report["measure"] == "bits per byte"
    assert report["data"]["tokenizer"] == {"softmax": "Bytes()", "bpe": "BPE(512)"}
    assert [x["value"] for x in report["differences"]["variants"]["bpe"]] == [0] * len(FAR)
    assert "Bits per byte are the negative log-likelihood" in weights_in_words(report)
    for point in bpe["contexts"]:  # tokens that stick out: as much a byte
        for document in point["documents"]:
            document["nll"], document["bytes"] = 1.1 * document["nll"], 11 * document["bytes"] // 10
    report = summarise([ONCE[0], bpe], {})
    values = [x["value"] for x in report["differences"]["variants"]["bpe"]]
    assert values == pytest.approx([0] * len(FAR), abs=1e-12)
    bpe["data"] |= {"targets": "other spans"}
    with pytest.raises(ValueError, match=r"leave room for .* same SameTargets\(before=...\)"):
        summarise([ONCE[0], bpe], {})


def test_contexts_in_bytes_are_called_so():
    assert "At 2,048 tokens of context" in finding(summarise(ONCE, {}))
    in_bytes = [r | {"about": about(SameTargets(unit="bytes"))} for r in ONCE]
    report = summarise(in_bytes, {})
    assert "At 2,048 bytes of context" in finding(report)
    assert "tokens, over the same targets" not in gains_in_words(report)
    texts = [t.get_text() for t in draw_measure(report, LIGHT, narrow=False).axes[0].texts]
    assert not any("trained to" in text for text in texts)
    console = Console(record=True, width=100)
    print_table(report, console)
    assert "by context length in bytes" in console.export_text()


def test_contexts_with_other_targets_are_not_compared():
    by_position = [r | {"about": about(ByPosition())} for r in ONCE]
    report = summarise(by_position, {})
    assert report["variants"]["softmax"]["gains"] == []
    assert "gain_vs_context" not in pictures_of(report, {})


def _change(part, key, value):
    other = copy.deepcopy(ONCE[1])
    other[part][key] = value
    return other


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([_change("protocol", "span", 32)], r"protocol\.span is 256 .* 32 for the other"),
        ([_change("data", "fingerprint", "cd34")], r"'softmax' and '<rwkv>' .*data\.fingerprint"),
        ([_change("data", "split", "train")], r"data\.split is None"),
        ([ONCE[0]], "same variant and seed"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, others, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, "No", QUESTION, [ONCE[0], *others], {})
    assert not list(tmp_path.iterdir())


def test_no_results_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one variant"):
        write_report(tmp_path, "No", QUESTION, [], {})


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_protocol_is_put_into_words(protocol):
    said = about(protocol())
    assert said["words"].endswith(".")
    assert decoded_measures(json.loads(json.dumps(said))) == list(protocol().measures)
