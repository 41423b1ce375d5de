"""Which pictures a report has: how each is drawn, and the numbers in it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from lcx.report import series
from lcx.report.curves import draw_differences, draw_gains, draw_measure
from lcx.report.figures import draw_quality, draw_state, draw_training
from lcx.report.look import LIGHT, Look, render
from lcx.report.summary import Curves, Report, measure_in

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
    found = {
        f"{stem}_vs_context": Picture(
            f"{name} by context", partial(draw_measure, report), series.flat(series.levels(report))
        )
    }
    if gains:
        found["gain_vs_context"] = Picture(
            f"{name} of each variant against its own at the shortest context",
            partial(draw_gains, report),
            series.flat(gains),
        )
    if differences:
        found["difference_vs_context"] = Picture(
            f"{name} of each variant against {first}",
            partial(draw_differences, report),
            series.flat(differences),
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
