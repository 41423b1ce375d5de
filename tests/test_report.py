import copy
import io
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.markers import CARETUP
from rich.console import Console

from lcx.figures import LIGHT, draw_measure, draw_training
from lcx.metrics import Evaluation, context_score, jsonable
from lcx.page import WORDS
from lcx.protocols import PROTOCOLS
from lcx.report import _summary, print_costs, print_table, write_report
from lcx.spec import encode

QUESTION = """Does <it> hold & how far?

    lcx compare experiments/far.py --out runs/far

Cost: ten minutes.
"""


def evaluation(
    variant: str, ppl: dict[int, float], train_len: int = 512, documents: int = 6
) -> Evaluation:
    hardness = 0.2 * np.random.default_rng(0).standard_normal(documents)
    points = [
        context_score(
            context,
            [
                {
                    "name": f"d{i}",
                    "nll": 64 * (math.log(x) + float(h)),
                    "tokens": 64,
                    "bytes": 80,
                    "hits": int(64 * min(1, 1 / x)) if x == x else 0,
                }
                for i, h in enumerate(hardness - hardness.mean())
            ],
        )
        for context, x in ppl.items()
    ]
    return {
        "variant": variant,
        "protocol": {"type": "SameTargets", "contexts": list(ppl), "targets": 64},
        "data": {"source": "PythonCorpus()", "fingerprint": "ab12", "documents": documents},
        "cost": {
            "parameters": 851_968,
            "training_flops": 6.5e6,
            "state_bytes": {str(c): 4096 * c for c in ppl},
        },
        "train_len": train_len,
        "train_tokens": 8_192_000,
        "train_seconds": 400.0,
        "eval_seconds": 20.0,
        "contexts": points,
        "environment": {"lcx": "0.1.0", "device": variant},
    }


def curve(loss: float) -> list[dict[str, float]]:
    return [
        {"step": s, "tokens": 4096.0 * s, "loss": loss + 4 / s, "seconds": 0.1 * s}
        for s in range(1, 100)
    ]


RESULTS = [
    evaluation("softmax", {256: 3.7, 512: 3.5, 1024: 9.8, 2048: 1.2e5}),
    evaluation("<rwkv>", {256: 4.0, 512: 3.9, 1024: 3.9, 2048: 3.9}),
    evaluation("tuned", {256: 5.4, 512: 5.3, 1024: 5.3, 2048: 5.3}, train_len=2048),
]
CURVES = {"softmax": curve(1.2), "<rwkv>": curve(1.3)}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "far" / "report"
    return out, write_report(out, "How & how far", QUESTION, RESULTS, CURVES)


def test_the_folder_holds_page_numbers_and_pictures_and_no_leftovers(written):
    out, _ = written
    pictures = {"perplexity_vs_context.png", "training_loss.png", "state_vs_context.png"}
    names = {"report.json", "report.html"} | pictures
    assert {path.name for path in out.iterdir()} == names
    for picture in out.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_report_json(written):
    out, report = written
    assert json.loads((out / "report.json").read_text()) == report
    assert set(report) == {"protocol", "data", "variants", "differences", "environment"}
    assert report["protocol"] == RESULTS[0]["protocol"]
    assert report["data"] == RESULTS[0]["data"]
    assert list(report["variants"]) == ["softmax", "<rwkv>", "tuned"]
    softmax = report["variants"]["softmax"]
    costs = {"cost", "train_len", "train_tokens", "train_seconds", "eval_seconds"}
    assert set(softmax) == costs | {"contexts"}
    assert {key: softmax[key] for key in costs} == {key: RESULTS[0][key] for key in costs}
    point = softmax["contexts"][1]
    assert set(point) == {
        *("context", "ppl", "bits_per_byte", "ci95", "accuracy", "accuracy_ci95", "tokens")
    }
    assert (point["context"], point["tokens"]) == (512, 384)
    assert point["ppl"] == pytest.approx(3.5, rel=1e-12)
    assert point["ci95"][0] < 3.5 < point["ci95"][1]


def test_differences_are_against_the_first_variant(written):
    _, report = written
    differences = report["differences"]
    assert differences["against"] == "softmax"
    assert list(differences["variants"]) == ["<rwkv>", "tuned"]
    rwkv = {p["context"]: p for p in differences["variants"]["<rwkv>"]}
    assert list(rwkv) == [256, 512, 1024, 2048]
    # Documents are equally hard for both variants here, and so cancel to rounding.
    assert rwkv[1024]["ratio"] == pytest.approx(3.9 / 9.8, rel=1e-12)
    assert rwkv[1024]["ci95"] == pytest.approx([3.9 / 9.8] * 2, rel=1e-12)


def test_environment_says_once_what_all_share(written):
    _, report = written
    device = {name: name for name in report["variants"]}
    assert report["environment"] == {"lcx": "0.1.0", "device": device}


class Page(HTMLParser):
    """Collects what a page says and what it would load; fails on tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text, self.loads = [], [], "", []
        self.cells: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.loads += [found[key] for key in ("src", "srcset", "href") if key in found]
        if tag == "td":
            for kind in found.get("class", "").split():
                self.cells.setdefault(kind, []).append("")
        if tag not in ("meta", "link", "img", "source"):
            self.open.append((tag, found.get("class", "").split()))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1][0] == "td":
            for kind in self.open[-1][1]:
                self.cells[kind][-1] += data


def test_the_page_is_whole_and_asks_nothing_of_the_network(written):
    out, _ = written
    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.loads
    assert all(address.startswith("data:") for address in page.loads)
    assert "url(" not in text
    assert "@import" not in text
    assert page.tags.count("picture") == 3
    assert page.tags.count("source") == 9  # dark or narrow or both, thrice


def test_the_page_escapes_and_tells(written):
    out, _ = written
    text = (out / "report.html").read_text()
    assert "<rwkv>" not in text
    assert "<it>" not in text
    said = Page(text).text
    for words in (
        "How & how far",
        "Does <it> hold & how far?",
        "lcx compare experiments/far.py --out runs/far",
        "At 2,048 tokens of context <rwkv> has the lowest perplexity: 3.90 (95% interval",
        "Every variant predicts the same last 64 tokens of each document",
        "851,968",
        "20,480",  # tokens a second
        "ab12",
    ):
        assert words in said


def test_the_page_marks_the_best_and_what_lies_beyond_training(written):
    out, _ = written
    cells = Page((out / "report.html").read_text()).cells
    assert cells["best"] == ["3.70", "3.50", "3.90", "3.90"]  # rows first: softmax, then <rwkv>
    assert cells["beyond"] == ["9.80", "1.2e5", "3.90", "3.90"]
    assert cells["edge"] == ["9.80", "3.90"]
    assert len(cells["lower"]) == 4  # both others beat softmax at 1024 and 2048
    assert len(cells["higher"]) == 4


def test_writing_again_replaces_with_the_same_bytes(written):
    out, _ = written
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write_report(out, "How & how far", QUESTION, RESULTS, CURVES)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_diverged_or_stands_alone_is_shown_as_missing(tmp_path):
    alone = evaluation("alone", {512: 3.5, 1024: math.nan, 2048: math.inf}, documents=1)
    report = write_report(tmp_path, "One", "", [jsonable(alone)], {"alone": [{"loss": None}]})
    points = report["variants"]["alone"]["contexts"]
    assert [p["ppl"] for p in points] == [pytest.approx(3.5), None, None]
    assert all(p["ci95"] == [None, None] for p in points)
    assert "No variant has a finite perplexity at 2,048" in (tmp_path / "report.html").read_text()


def _change(part, key, value):
    other = copy.deepcopy(RESULTS[1])
    other[part][key] = value
    return other


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([_change("protocol", "targets", 32)], r"protocol\.targets is 64 .* 32 for the other"),
        ([_change("data", "fingerprint", "cd34")], r"'softmax' and '<rwkv>' .*data\.fingerprint"),
        ([_change("data", "split", "train")], r"data\.split is None"),
        ([RESULTS[0]], "same variant name"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, others, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, "No", QUESTION, [RESULTS[0], *others], {})
    assert not list(tmp_path.iterdir())


def test_no_results_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one variant"):
        write_report(tmp_path, "No", QUESTION, [], {})


def test_a_curve_that_blows_up_does_not_squash_the_rest():
    ax = draw_measure(_summary(RESULTS), LIGHT, narrow=False).axes[0]
    bottom, top = ax.get_ylim()
    assert bottom < 3.5
    assert 9.8 < top < 200
    above = [line for line in ax.lines if line.get_marker() == CARETUP]
    assert [list(line.get_xdata()) for line in above] == [[2048]]


def test_a_run_that_diverged_does_not_squash_the_training_curves():
    curves = {"softmax": curve(1.2), "tuned": curve(1e6)}
    ax = draw_training(_summary(RESULTS), curves, LIGHT, narrow=False).axes[0]
    # 98% of the sound run's losses lie under 3.3; the axis ends at about three times that.
    assert 3 < ax.get_ylim()[1] < 11


def _printed(report) -> list[str]:
    console = Console(width=80, file=io.StringIO())
    print_table(report, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_terminal_table_fits_80_columns_whatever_the_numbers():
    sizes = (3.5, 26.13, 123.4, 1234.5, 1.2e5, math.inf, math.nan, None)
    points = [{"context": 64 * 2**i, "ppl": x} for i, x in enumerate(sizes)]
    report = {
        "protocol": {"type": "SameTargets"},
        "variants": {
            "softmax [bold]": {"train_len": 512, "contexts": points},
            "position interpolation, zero-shot": {"train_len": 64, "contexts": points[:1]},
        },
    }
    lines = _printed(report)
    assert max(map(len, lines)) <= 80
    head = next(line for line in lines if "variant" in line)
    assert head.split()[1:] == ["train", "64", "128", "256", "512", "1k", "2k", "4k", "8k"]
    row = next(line for line in lines if line.lstrip().startswith("softmax"))
    numbers = ["3.50", "26.1", "123", "1234", "1.2e5*", "∞*", "–*", "–*"]
    assert row.split()[-9:] == ["512", *numbers]
    assert "[bold]" in " ".join(lines)


def test_terminal_table_reads_the_file_back(written):
    out, report = written
    lines = _printed(json.loads((out / "report.json").read_text()))
    assert lines == _printed(report)
    assert any(line.split() == ["tuned", "2k", "5.40", "5.30", "5.30", "5.30"] for line in lines)


def test_recall_is_reported_as_accuracy_and_against_state(tmp_path):
    results = [r | {"protocol": {"type": "Recall", "contexts": [256]}} for r in RESULTS]
    report = write_report(tmp_path, "Recall", QUESTION, results, CURVES)
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    both = {"training_loss", "state_vs_context"}
    assert pictures == both | {"accuracy_vs_context", "accuracy_vs_state"}
    text = Page((tmp_path / "report.html").read_text()).text
    assert "softmax has the highest accuracy" not in text
    assert "<rwkv> has the highest accuracy: 0.25 (95% interval 0.25 to 0.25)" in text
    lines = _printed(report)
    assert any(line.split() == ["tuned", "2k", "0.17", "0.19", "0.19", "0.19"] for line in lines)
    assert any("Accuracy by context" in line for line in lines)


def test_costs_are_printed_with_dashes_for_what_is_not_known():
    console = Console(width=80, file=io.StringIO())
    costs = {r["variant"]: r["cost"] for r in RESULTS}
    costs["own"] = costs["tuned"] | {"parameters": 7, "training_flops": None}
    print_costs(costs, console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["softmax", "8.5e5", "6.50", "1M", "2M", "4M", "8M"] in lines
    assert ["own", "7.00", "–", "1M", "2M", "4M", "8M"] in lines


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_protocol_is_put_into_words(protocol):
    settings = encode(protocol())
    assert "{" not in WORDS[settings["type"]].format(**settings)
