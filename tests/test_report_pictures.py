"""The pictures of a report: axes, styles, and names that are drawn as they stand."""

import copy
import itertools
import math
import re
from dataclasses import replace
from functools import partial
from xml.etree import ElementTree

import pytest
from matplotlib import rc_context
from matplotlib.markers import CARETUP
from matplotlib.text import Text
from rich.cells import cell_len
from rich.console import Console

from lcx.evaluation.metrics import about
from lcx.protocols import Recall, SameTargets
from lcx.report.axes import log_ticks
from lcx.report.curves import draw_gains, draw_measure
from lcx.report.figures import draw_training
from lcx.report.look import DARK, LIGHT, darkened, render, style_of, swatch
from lcx.report.naming import shortened
from lcx.report.pictures import Picture, pictures_of
from lcx.report.sentences import finding
from lcx.report.summary import summarise
from lcx.report.writer import print_table
from lcx.spec import encode
from tests.reports import CURVES, LEVEL, ONCE, RESULTS, curve, evaluation


def test_a_dark_picture_is_the_light_one_recoloured():
    report = summarise(ONCE, {})
    light, dark = (
        render(lambda *style: draw_measure(report, *style), look, kind="svg").decode()
        for look in (LIGHT, DARK)
    )
    colours = [sorted(set(re.findall("#[0-9a-f]{6}", svg))) for svg in (darkened(light), dark)]
    assert colours[0] == colours[1]
    assert not set(colours[0]) & {LIGHT.ink, LIGHT.paper, *LIGHT.colours}


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
    console = Console(width=80, record=True)
    print_table(report, console)
    assert "Accuracy by context" in console.export_text()


@pytest.mark.parametrize("look", [LIGHT, DARK])
def test_24_variants_differ_in_every_picture_and_table(look):
    styles = [style_of(i, look) for i in range(24)]
    assert len({(s["color"], s["linestyle"]) for s in styles}) == 24  # where curves have no markers
    assert len({(s["color"], s["marker"]) for s in styles}) == 24  # where points have no lines
    assert len({swatch(i) for i in range(24)}) == 24


NAMES = (
    "cost$5_$9", "_leading", "50%", "<b>&amp;", "x^2_{3", "\\frac{1}", "[bold]", "a[/b]", "#0072b2",
    "שלום", "混合模型", "🚀", "a\tb", "a--b-->", "a" * 80 + "1", "a" * 80 + "2" + "a" * 20,
)  # fmt: skip


def named(*names):
    results = [evaluation(name, LEVEL) for name in names]
    curves = {name: [curve(1.0)] for name in names}
    return summarise(results, curves), curves


def test_names_are_drawn_as_they_stand():
    """Warnings are errors here: also that of a character which no font has."""
    report, curves = named(*NAMES)
    pictures = pictures_of(report, curves)
    for picture in pictures.values():
        for narrow in (False, True):
            said = _texts_of_one(picture, narrow)
            first = picture.alt.endswith("against cost$5_$9")  # which is on the axis, then
            for name in NAMES[first:9]:
                assert re.search(rf"^{re.escape(name)}(  |$)", said, re.MULTILINE)
            assert "\u200eשלום\u200e" in said
            assert "a▯b" in said


def _texts_of_one(picture: Picture, narrow: bool) -> str:
    """The texts of a picture, a line each, once it is drawn as a sound SVG."""
    kept = []

    def draw(look, narrow):
        kept.append(picture.draw(look, narrow))
        return kept[0]

    ElementTree.fromstring(render(draw, LIGHT, narrow, kind="svg"))
    return "\n".join(text.get_text() for text in kept[0].findobj(Text))


def test_a_users_own_style_does_not_reach_the_pictures():
    report, _ = named("a$b$")
    draw = partial(draw_measure, report)
    plain = render(draw, LIGHT, kind="svg")
    with rc_context({"text.usetex": True, "font.family": ["no such font"], "lines.marker": "x"}):
        assert render(draw, LIGHT, kind="svg") == plain


def test_long_names_are_shortened_and_still_differ():
    long = [f"{'gated_delta_net_' * 3}{middle}{'_and_so_on' * 3}" for middle in "abc"]
    short = shortened(["short", *long, "混合模型" * 9])
    assert short[0] == "short"
    assert len(set(short)) == 5
    assert max(map(cell_len, short)) <= 28


def test_the_picture_of_training_says_what_its_loss_counts():
    curves = {"softmax": [curve(1.2)]}
    report = summarise(copy.deepcopy(ONCE), curves)
    label = draw_training(report, curves, LIGHT, narrow=False).axes[0].get_ylabel()
    assert label == "loss (nats per token)"
    report["variants"]["tuned"]["setup"]["loss_unit"] = "bits per byte"
    label = draw_training(report, curves, LIGHT, narrow=False).axes[0].get_ylabel()
    assert label == "loss (in each variant's own unit)"


def test_a_measure_of_any_name_has_files():
    odd = replace(SameTargets().measures[0], name="bits / $byte$")
    about_odd = about(SameTargets()) | {"measures": [encode(odd)]}
    report = summarise([r | {"about": about_odd} for r in ONCE], {})
    first, *_ = pictures_of(report, {})
    assert first == "bits_byte_vs_context"
