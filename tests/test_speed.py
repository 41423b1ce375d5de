"""How fast training is said to be: compilation and hiccups left out."""

import math

import pytest

from lcx.training import log
from lcx.training.log import Log
from lcx.training.runs import Run
from lcx.training.speed import speed_of
from tests.reports import curve


def test_speed_forgets_compilation():
    assert speed_of([curve(1.0)]) == pytest.approx((20_480, 20_480))
    assert speed_of([]) is None
    assert speed_of([curve(1.0)[:1]]) is None


def test_the_best_step_is_one_that_nothing_disturbed():
    """Half the steps wait twice as long; one in fifty seems to take no time at all."""
    rows, seconds = [], 0.0
    for step in range(200):
        seconds += 0.0 if step % 50 == 49 else 0.2 if step % 2 else 0.4
        rows.append({"tokens": 4096.0 * step, "seconds": seconds})
    speed = speed_of([rows])
    assert speed is not None
    assert speed.best == pytest.approx(20_480)
    assert speed.median <= speed.best
    stopped = [row | {"seconds": 1.0} for row in rows]
    assert speed_of([stopped]) is None


def test_the_bar_shows_a_speed_without_compilation(tmp_path, monkeypatch):
    clock = iter([0.0, *(60.0, 63.0), *(63 + 0.2 * i for i in range(1, 30))])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(clock))
    metrics = {"loss": 2.0, "tokens": 4096.0, "grad_norm": 1.0}
    with Log(Run(tmp_path), 0, lambda _: 1e-3) as written:
        notes = [written.write(step, metrics) for step in range(1, 25)]
    assert not any("tokens/s" in note for note in notes[:3])
    assert all(note.endswith("  20,480 tokens/s") for note in notes[3:])
    assert math.isfinite(float(notes[-1].split()[1]))
