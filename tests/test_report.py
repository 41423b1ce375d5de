"""The folder of a report: its numbers, its pictures' names, its page."""

import copy
import csv
import json
import math
from html.parser import HTMLParser

import pytest

from lcx.evaluation.metrics import jsonable
from lcx.report.pictures import pictures_of
from lcx.report.sentences import speeds_in_words
from lcx.report.summary import bold_variants, summarise
from lcx.report.tables import cost_table, variant_table
from lcx.report.writer import write_report
from tests.reports import CURVES, FALLING, FAR, ONCE, QUESTION, RESULTS, curve, evaluation


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "far" / "report"
    return out, write_report(out, "How & how far", QUESTION, RESULTS, CURVES)


def test_the_folder_holds_page_numbers_and_pictures_and_no_leftovers(written):
    out, _ = written
    pictures = {
        "perplexity_vs_context", "gain_vs_context", "difference_vs_context", "quality_vs_cost",
        "state_vs_context", "training_loss",
    }  # fmt: skip
    kinds = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "csv": b"variant,"}
    names = {f"{name}.{kind}" for name in pictures for kind in kinds}
    assert {path.name for path in out.iterdir()} == names | {"report.json", "report.html"}
    for path in out.iterdir():
        assert path.read_bytes().startswith(kinds.get(path.suffix[1:], b""))


def test_report_json(written):
    out, report = written
    assert json.loads((out / "report.json").read_text()) == report
    assert report["protocol"] == RESULTS[0]["protocol"]
    assert report["data"] == RESULTS[0]["data"]
    assert report["measure"] == "perplexity"
    assert list(report["variants"]) == ["softmax", "<rwkv>", "tuned"]
    softmax = report["variants"]["softmax"]
    assert {key: softmax[key] for key in ("cost", "setup", "train_len", "train_tokens")} == {
        key: RESULTS[0][key] for key in ("cost", "setup", "train_len", "train_tokens")
    }
    assert softmax["seeds"] == 3
    point = softmax["contexts"][1]
    counts = ("context", "reach", "tokens", "documents", "spans", "seeds")
    assert [point[key] for key in counts] == [448, 512, 384, 6, 6, 3]
    assert point["ci95"][0] < point["ppl"] < point["ci95"][1]
    single = [run["contexts"][1]["ppl"] for run in softmax["runs"]]
    assert point["ppl"] == pytest.approx(math.prod(single) ** (1 / 3), rel=1e-12)
    assert [run["seed"] for run in softmax["runs"]] == [0, 1, 2]
    assert softmax["tokens_per_second"] == pytest.approx(4096 / 0.2, rel=1e-9)
    assert report["variants"]["tuned"]["tokens_per_second"] is None


def test_longer_than_trained_goes_by_what_the_targets_see(written):
    _, report = written
    trained = {n: [p["trained"] for p in v["contexts"]] for n, v in report["variants"].items()}
    assert trained["softmax"] == [True, True, False, False, False]  # at 512 targets see up to 576
    assert trained["tuned"] == [True] * 5


def test_differences_are_against_the_first_variant(written):
    _, report = written
    assert report["differences"]["against"] == "softmax"
    assert list(report["differences"]["variants"]) == ["<rwkv>", "tuned"]
    rwkv = {p["context"]: p for p in report["differences"]["variants"]["<rwkv>"]}
    assert list(rwkv) == list(FAR)
    ppl = [report["variants"][n]["contexts"][3]["ppl"] for n in ("<rwkv>", "softmax")]
    assert rwkv[1024]["value"] == pytest.approx(ppl[0] / ppl[1], rel=1e-12)
    assert rwkv[1024]["ci95"][0] < rwkv[1024]["value"] < rwkv[1024]["ci95"][1] < 1
    assert rwkv[1024]["marked"]
    assert rwkv[1024]["training_chance"]
    # every pair at every context, and every variant's contexts against its shortest
    assert report["family"] == {"method": "Holm", "level": 0.05, "comparisons": 3 * 5 + 3 * 4}


def test_gains_are_against_the_shortest_context(written):
    _, report = written
    gains = report["variants"]["tuned"]["gains"]
    assert [(g["context"], g["against"]) for g in gains] == [(c, 256) for c in list(FALLING)[1:]]
    # in this one seed and document add the same at every context, and cancel
    assert gains[-1]["value"] == pytest.approx(5.6 / 6.2, rel=1e-12)
    assert gains[-1]["marked"]


def test_environment_says_once_what_all_share(written):
    _, report = written
    device = {name: name for name in report["variants"]}
    assert report["environment"] == {"lcx": "0.1.0", "device": device}


def test_csv_files_hold_what_the_pictures_show(written):
    out, report = written
    with (out / "perplexity_vs_context.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "variant", "context", "value", "low", "high", "tokens", "documents", "spans", "seeds",
        "trained",
    ]  # fmt: skip
    assert len(rows) == 15
    assert (rows[2]["variant"], rows[2]["context"], rows[2]["trained"]) == (
        "softmax",
        "512",
        "False",
    )
    point = report["variants"]["softmax"]["contexts"][2]
    found = [float(rows[2][key]) for key in ("value", "low", "high")]
    assert found == pytest.approx([point["ppl"], *point["ci95"]], rel=1e-12)
    with (out / "difference_vs_context.csv").open() as file:
        assert {row["against"] for row in csv.DictReader(file)} == {"softmax"}
    with (out / "training_loss.csv").open() as file:
        losses = [row for row in csv.DictReader(file) if row["variant"] == "softmax"]
    assert {row["seed"] for row in losses} == {"0", "1", "2"}
    assert sum(row["validation_loss"] != "" for row in losses) == 6


class Page(HTMLParser):
    """Collects what a page says and what it would load; fails on tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text, self.loads = [], [], "", []
        self.cells: dict[str, list[str]] = {}
        self.rows: dict[str, list[str]] = {}
        """By variant, what the cells of its row in the last table say, without what is small."""
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
        if self.open and self.open[-1][0] == "bdi":
            self.rows[data] = []
        if self.open and self.open[-1][0] == "td":
            list(self.rows.values())[-1].append(data)
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
    assert page.tags.count("picture") == 6
    assert page.tags.count("source") == 18  # dark or narrow or both, six times


def test_the_page_escapes_and_tells(written):
    out, _ = written
    text = (out / "report.html").read_text()
    assert "<rwkv>" not in text
    assert "<it>" not in text
    said = " ".join(Page(text).text.split())
    for words in (
        "How & how far",
        "Does <it> hold & how far?",
        "lcx compare experiments/far.py --out runs/far",
        "At 2,048 tokens of context <rwkv> has the lowest perplexity: 4.",
        "Measured at each context: 384 tokens in 6 spans of 6 documents; 3 seeds a variant.",
        "intervals over documents and seeds together",
        "all documents weigh the same, 64 tokens each",
        "Holm's method holds the chance that any mark of this page is wrong at 5%, over 27",
        "Every variant predicts the same spans of 256 bytes",
        "SoftmaxAttention(heads=4)",
        "AdamW(peak=0.003)",
        "4 x 512",
        "851,968",
        "20,480",  # steady tokens a second
        "What a loss does besides, such as having text written, is not counted.",
        "ab12",
    ):
        assert words in said


def test_the_page_marks_what_is_told_apart_and_what_lies_beyond_training(written):
    out, report = written
    cells = Page((out / "report.html").read_text()).cells
    assert bold_variants(report) == {
        256: ["softmax"], 448: ["softmax"], 512: ["softmax"], 1024: ["<rwkv>"], 2048: ["<rwkv>"]
    }  # fmt: skip
    assert len(cells["best"]) == 5
    assert len(cells["beyond"]) == 3 * (3 + 3)  # a table each: perplexity, bits, accuracy
    assert all(text.startswith("▼") for text in cells["good"])
    assert all(text.startswith("▲") for text in cells["bad"])


def test_pictures_come_out_with_the_same_bytes(written):
    out, _ = written
    again = pictures_of(summarise(RESULTS, CURVES), CURVES)["perplexity_vs_context"]
    for kind in ("png", "svg", "pdf"):
        assert again.draw_as(kind) == (out / f"perplexity_vs_context.{kind}").read_bytes()


def test_what_diverged_or_stands_alone_is_shown_as_missing(tmp_path):
    alone = evaluation("alone", {512: 3.5, 1024: math.nan, 2048: math.inf}, documents=1)
    report = write_report(tmp_path, "One", "", [jsonable(alone)], {"alone": [[{"loss": None}]]})
    points = report["variants"]["alone"]["contexts"]
    assert [p["ppl"] for p in points] == [pytest.approx(3.5), None, None]
    assert all(p["ci95"] == [None, None] for p in points)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "At 2,048 tokens of context no variant has a finite perplexity" in text
    assert "Variant against variant" not in text


def test_the_page_says_what_else_a_variant_is():
    """What --set changed, a loss of its own; dashes for weights that were never trained here."""
    changed, odd, _ = copy.deepcopy(ONCE)
    changed["setup"]["changes"] = ["train.steps=100", "model.pattern.0.mixer=<b>"]
    changed["setup"]["loss"] = "CrossEntropy(z=0.0001)"
    untrained = {"train_tokens": 0, "train_flops": 0.0, "train_seconds": 0.0, "trainings": []}
    odd |= untrained | {"published": "Pretrained('x')", "setup": odd["setup"] | {"steps": 0}}
    odd["cost"] |= {"tuned_parameters": 12_288}
    report = summarise([changed, odd], {})
    page = Page(variant_table(report))
    assert page.text.count("trained: 12,288") == 1
    assert "--set train.steps=100--set model.pattern.0.mixer=<b>" in page.text
    assert page.text.count("loss: CrossEntropy(z=0.0001)") == 1
    rows = Page(cost_table(report)).rows
    assert rows["<rwkv>"][:4] == ["6.50", "–", "–", "–"]
    assert rows["softmax"][:4] == ["6.50", "5.3e13", "400.0", "–"]


def test_the_page_says_where_the_machine_was_busy():
    quiet, busy = curve(1.0), copy.deepcopy(curve(1.0))
    waited = 0.0
    for row in busy:
        waited += 0.2 * (row["step"] % 3 > 0)
        row["seconds"] += waited
    said = speeds_in_words(summarise(ONCE, {"softmax": [quiet], "<rwkv>": [busy]}))
    assert "While <rwkv> trained, the machine was busy with something else: " in said
    assert "the median step had 50% of the best one's speed" in said
    assert "busy" not in speeds_in_words(summarise(ONCE, {"softmax": [quiet]}))
    both = summarise(ONCE, {"softmax": [busy], "<rwkv>": [busy]})
    assert "While all variants trained" in speeds_in_words(both)
