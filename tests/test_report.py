import copy
import csv
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.markers import CARETUP
from rich.console import Console

from lcx.evaluation.metrics import Evaluation, about, context_score, jsonable
from lcx.protocols import PROTOCOLS, ByPosition, Recall, SameTargets
from lcx.report.comparable import decoded_measures
from lcx.report.curves import draw_gains, draw_measure
from lcx.report.figures import draw_training
from lcx.report.look import DARK, LIGHT, darkened, log_ticks, render, style_of
from lcx.report.pictures import pictures_of
from lcx.report.sentences import (
    bands_in_words,
    comparisons_in_words,
    finding,
    gains_in_words,
    weights_in_words,
)
from lcx.report.summary import bold_variants, steady_speed, summarise
from lcx.report.writer import print_costs, print_table, write_report

QUESTION = """Does <it> hold & how far?

    lcx compare experiments/far.py --out runs/far

Cost: ten minutes.
"""


def evaluation(
    variant: str,
    ppl: dict[int, float],
    train_len: int = 512,
    documents: int = 6,
    seed: int = 0,
    trainings: list[str] | None = None,
    chance: np.random.Generator | None = None,
) -> Evaluation:
    """One run. chance: draws what its seed, and its documents under it, add to its nats."""
    hardness = 0.2 * np.random.default_rng(0).standard_normal(documents)
    hardness -= hardness.mean()
    if chance is not None:
        own = 0.02 * chance.standard_normal(documents)
        hardness = hardness + own + 0.02 * chance.standard_normal()
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
                    "spans": 1,
                }
                for i, h in enumerate(hardness)
            ],
            context + 64,
            SameTargets().measures,
        )
        for context, x in ppl.items()
    ]
    return {
        "variant": variant,
        "seed": seed,
        "protocol": {"type": "SameTargets", "contexts": list(ppl), "span": 256, "unit": "tokens"},
        "about": about(SameTargets()),
        "data": {"source": "PythonCorpus()", "tokenizer": "Bytes()", "fingerprint": "ab12"},
        "setup": {
            "mixers": ["SoftmaxAttention(heads=4)"],
            "heads": [4],
            "layers": 3,
            "width": 128,
            "vocabulary": 257,
            "length": 512,
            "batch": 4,
            "steps": 450,
            "positions": None,
            "optimizer": "AdamW(peak=0.003)",
            "learning_rate": 3e-3,
            "init_from": None,
        },
        "cost": {
            "parameters": 851_968,
            "training_flops": 6.5e6,
            "state_bytes": {str(c): 4096 * c for c in ppl},
        },
        "published": None,
        "trainings": trainings or [variant],
        "train_len": train_len,
        "train_tokens": 8_192_000,
        "train_flops": 5.3e13,
        "train_seconds": 400.0,
        "eval_seconds": 20.0,
        "contexts": points,
        "environment": {"lcx": "0.1.0", "device": variant},
    }


def runs(variant: str, ppl: dict[int, float], seeds: int, chance: int, **more) -> list[Evaluation]:
    rng = np.random.default_rng(chance)
    return [evaluation(variant, ppl, seed=i, chance=rng, **more) for i in range(seeds)]


def curve(loss: float) -> list[dict[str, float]]:
    """A first step of a minute, for compilation; 0.2 s each after; validation twice."""
    rows = [
        {"step": s, "tokens": 4096.0 * s, "loss": loss + 4 / s, "seconds": 60 + 0.2 * s}
        for s in range(1, 100)
    ]
    for s in (39, 79):
        rows[s]["validation_loss"] = loss + 0.2
    return rows


FAR = {256: 3.7, 448: 3.5, 512: 3.6, 1024: 9.8, 2048: 1.2e5}
LEVEL = {256: 4.6, 448: 4.5, 512: 4.5, 1024: 4.5, 2048: 4.5}
FALLING = {256: 6.2, 448: 5.9, 512: 5.8, 1024: 5.6, 2048: 5.6}


def three(seeds: int, **more) -> list[Evaluation]:
    """A model that breaks beyond its training, one that does not, and a fine-tune of the first."""
    return [
        *runs("softmax", FAR, seeds, chance=1, **more),
        *runs("<rwkv>", LEVEL, seeds, chance=2, **more),
        *runs(
            "tuned", FALLING, seeds, chance=3, train_len=2112, trainings=["softmax", "tuned"],
            **more,
        ),
    ]  # fmt: skip


RESULTS, ONCE = three(3), three(1)
CURVES = {"softmax": [curve(1.2), curve(1.3), curve(1.1)], "<rwkv>": [curve(1.3)] * 3}


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
        "Scored at each context: 384 tokens in 6 spans of 6 documents; 3 seeds a variant.",
        "intervals over documents and seeds together",
        "all documents weigh the same, 64 tokens each",
        "Holm's method holds the chance that any mark of this page is wrong at 5%, over 27",
        "Every variant predicts the same spans of 256 bytes",
        "SoftmaxAttention(heads=4)",
        "AdamW(peak=0.003)",
        "4 x 512",
        "851,968",
        "20,480",  # steady tokens a second
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
    assert len(cells["beyond"]) == 2 * (3 + 3)  # in the table of the measure and in that of bits
    assert all(text.startswith("▼") for text in cells["good"])
    assert all(text.startswith("▲") for text in cells["bad"])


def test_a_dark_picture_is_the_light_one_recoloured():
    report = summarise(ONCE, {})
    light, dark = (
        render(lambda *style: draw_measure(report, *style), look, kind="svg").decode()
        for look in (LIGHT, DARK)
    )
    colours = [sorted(set(re.findall("#[0-9a-f]{6}", svg))) for svg in (darkened(light), dark)]
    assert colours[0] == colours[1]
    assert not set(colours[0]) & {LIGHT.ink, LIGHT.paper, *LIGHT.colours}


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


# What may be said, and what not


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


def test_the_steady_speed_forgets_compilation():
    assert steady_speed([curve(1.0)]) == pytest.approx(20_480)
    assert steady_speed([]) is None
    assert steady_speed([curve(1.0)[:1]]) is None


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


# Pictures and tables


def test_a_curve_that_blows_up_does_not_squash_the_rest():
    report = summarise(ONCE, {})
    for draw, at_most in ((draw_measure, 200), (draw_gains, 3)):
        ax = draw(report, LIGHT, narrow=False).axes[0]
        bottom, top = ax.get_ylim()
        assert bottom < 3.6
        assert top < at_most
        above = [line for line in ax.lines if line.get_marker() == CARETUP]
        assert [max(line.get_xdata()) for line in above] == [2048]
        assert all(bottom <= tick <= top for tick in ax.get_yticks())
        assert len(ax.get_yticks()) >= 4


@pytest.mark.parametrize(("low", "high"), [(5, 5.3), (5, 8), (5, 160), (0.97, 1.02), (1, 1e6)])
def test_a_log_axis_has_ticks_all_along(low, high):
    ticks = log_ticks(low, high, 0.075)
    places = [math.log(t / low) / math.log(high / low) for t in ticks]
    assert 4 <= len(ticks) <= 14
    assert max(b - a for a, b in itertools.pairwise([0, *places, 1])) < 0.35


def test_a_run_that_diverged_does_not_squash_the_training_curves():
    curves = {"softmax": [curve(1.2)], "tuned": [curve(1e6)]}
    ax = draw_training(summarise(ONCE, curves), curves, LIGHT, narrow=False).axes[0]
    # 98% of the sound run's losses lie under 3.3; the axis ends at about three times that.
    assert 3 < ax.get_ylim()[1] < 11


def _printed(report) -> list[str]:
    console = Console(width=80, file=io.StringIO())
    print_table(report, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_terminal_table_fits_80_columns_whatever_the_numbers():
    sizes = (3.5, 26.13, 123.4, 1234.5, 1.2e5, math.inf, math.nan, None)
    points = [{"context": 64 * 2**i, "ppl": x, "trained": i < 4} for i, x in enumerate(sizes)]
    unknown = {"bold": [], "known": False}
    report = {
        "measure": "perplexity",
        "about": about(SameTargets()),
        "best": [{"context": p["context"], **unknown} for p in points],
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
    assert any(line.split()[:2] == ["tuned", "2112"] for line in lines)
    assert any("Bold: the best" in line for line in lines)


def test_recall_is_reported_as_accuracy():
    report = summarise([r | {"about": about(Recall())} for r in RESULTS], CURVES)
    assert report["measure"] == "accuracy"
    pictures = pictures_of(report, CURVES)
    assert {"accuracy_vs_context", "quality_vs_cost"} < set(pictures)
    assert "gain_vs_context" not in pictures  # each length asks for other pairs
    for picture in pictures.values():
        picture.draw_as("png", narrow=True)
    against = report["differences"]["variants"]["tuned"][0]
    levels = [report["variants"][n]["contexts"][0]["accuracy"] for n in ("tuned", "softmax")]
    assert against["value"] == pytest.approx(levels[0] - levels[1], rel=1e-9)
    assert "<rwkv> has the highest accuracy" in finding(report)
    assert any("Accuracy by context" in line for line in _printed(report))


def test_costs_are_printed_with_dashes_for_what_is_not_known():
    console = Console(width=80, file=io.StringIO())
    costs = {r["variant"]: r["cost"] for r in ONCE}
    costs["own"] = costs["tuned"] | {"parameters": 7, "training_flops": None}
    print_costs(costs, console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["softmax", "8.5e5", "6.50", "1M", "1.75M", "2M", "4M", "8M"] in lines
    assert ["own", "7.00", "–", "1M", "1.75M", "2M", "4M", "8M"] in lines


def test_many_variants_are_drawn_each_in_a_style_of_its_own():
    styles = [style_of(i, LIGHT) for i in range(40)]
    assert len({(s["color"], s["marker"], str(s["linestyle"])) for s in styles}) == 40


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_protocol_is_put_into_words(protocol):
    said = about(protocol())
    assert said["words"].endswith(".")
    assert decoded_measures(json.loads(json.dumps(said))) == list(protocol().measures)
