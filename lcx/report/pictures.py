"""Which pictures a report has: how each is drawn, and the numbers in it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from lcx.protocols.measures import Measure
from lcx.report import series
from lcx.report.curves import draw_differences, draw_further, draw_gains, draw_measure
from lcx.report.figures import draw_quality, draw_state, draw_training
from lcx.report.look import LIGHT, Look, render
from lcx.report.summary import Curves, Report, further_measures, measure_in, terms_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """One picture of a report."""

    alt: str
    """What it shows, for those who do not see it."""
    draw: Callable[[Look, bool], "Figure"]
    """For a look and a width: narrow or not."""
    rows: Sequence[series.Row]
    """Its numbers, for CSV."""

    @cached_property
    def svg(self) -> bytes:
        """The wide picture, which is a file and stands on the page."""
        return self.draw_as("svg")

    def draw_as(self, kind: str, narrow: bool = False) -> bytes:
        """The picture as a file, for light paper."""
        return render(self.draw, LIGHT, narrow, kind)


def pictures_of(report: Report, curves: Curves) -> dict[str, Picture]:
    """By the name of their files, that of the measure first; empty ones are left out."""
    measure = measure_in(report)
    stem, name = re.sub(r"\W+", "_", measure.name).strip("_"), measure.name.capitalize()
    first = report["differences"]["against"]
    gains, differences = series.gains(report), series.differences(report)
    short = terms_in(report).short
    found = {
        f"{stem}_vs_{short}": Picture(
            f"{name} by {short}", partial(draw_measure, report), _rows(report, measure)
        )
    }
    if gains:
        found[f"gain_vs_{short}"] = Picture(
            f"{name} of each variant against its own at the shortest {short}",
            partial(draw_gains, report),
            series.flat(gains),
        )
    if differences:
        found[f"difference_vs_{short}"] = Picture(
            f"{name} of each variant against {first}",
            partial(draw_differences, report),
            series.flat(differences),
        )
    further = further_measures(report)
    if further and report["reference"] is not None:
        found[f"further_measures_vs_{short}"] = Picture(
            f"Further measures by {short}",
            partial(draw_further, report),
            [{"measure": m.name, **row} for m in further for row in _rows(report, m)],
        )
    return found | {
        "quality_vs_cost": Picture(
            f"{name} against training FLOPs, and against bytes of state",
            partial(draw_quality, report),
            series.quality(report),
        ),
        "state_vs_context": Picture(
            "Bytes of state against length", partial(draw_state, report), series.states(report)
        ),
        "training_loss": Picture(
            "Training loss against tokens",
            partial(draw_training, report, curves),
            series.training(report, curves),
        ),
    }


def _rows(report: Report, measure: Measure) -> list[series.Row]:
    """Of the variants, and of what they are held against."""
    return series.flat(series.levels(report, measure) | series.reference(report, measure))
