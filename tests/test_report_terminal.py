"""What a terminal of 80 columns shows of results and of costs."""

import copy
import io
import json
import math

from rich.cells import cell_len
from rich.console import Console

from lcx.evaluation.metrics import about, jsonable
from lcx.progress import plain_console, progress
from lcx.protocols import SameTargets
from lcx.report.curves import draw_measure
from lcx.report.look import LIGHT
from lcx.report.summary import summarise
from lcx.report.tables import measure_table, variant_table
from lcx.report.writer import print_costs, print_table
from tests.reports import CURVES, FAR, ONCE, RESULTS, evaluation


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
        "reference": None,
        "failures": {},
        "about": about(SameTargets()),
        "best": [{"context": p["context"], **unknown} for p in points],
        "variants": {
            "softmax [bold]": {"train_len": 512, "setup": {"changes": []}, "contexts": points},
            "position interpolation, zero-shot": {
                "train_len": 64,
                "setup": {"changes": []},
                "contexts": points[:1],
            },
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


def test_terminal_table_reads_the_file_back():
    report = summarise(RESULTS, CURVES)
    lines = _printed(json.loads(json.dumps(jsonable(report))))
    assert lines == _printed(report)
    assert any(line.split()[:2] == ["tuned", "2112"] for line in lines)
    assert any("Bold: the best" in line for line in lines)


def test_terminal_table_marks_what_set_changed():
    changed = copy.deepcopy(ONCE)
    changed[1]["setup"]["changes"] = ["train.steps=100"]
    lines = _printed(summarise(changed, {}))
    assert any(line.split()[:1] == ["<rwkv>†"] for line in lines)
    assert "† changed by --set: train.steps=100." in lines
    assert not any("†" in line for line in _printed(summarise(ONCE, {})))


def _costs(costs, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    print_costs(costs, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    return lines


def test_costs_are_printed_with_dashes_for_what_is_not_known():
    costs = {r["variant"]: r["cost"] for r in ONCE}
    costs["own"] = costs["tuned"] | {"parameters": 7, "training_flops": None}
    lines = [line.split() for line in _costs(costs)]
    assert ["softmax", "852k", "6.50", "1M", "1.75M", "2M", "4M", "8M"] in lines
    assert ["own", "7", "–", "1M", "1.75M", "2M", "4M", "8M"] in lines


def test_costs_tell_how_few_parameters_are_trained():
    costs = {r["variant"]: r["cost"] for r in ONCE}
    assert not any("trained" in line for line in _costs(costs))
    costs["few"] = costs["tuned"] | {"tuned_parameters": 12_288}
    lines = [line.split() for line in _costs(costs)]
    assert ["variant", "params", "trained", "MFLOP"] in [line[:4] for line in lines]
    assert ["softmax", "852k", "852k", "6.50"] in [line[:4] for line in lines]
    assert ["few", "852k", "12.3k", "6.50"] in [line[:4] for line in lines]


def test_costs_have_names_in_one_line_and_lengths_as_there_is_room():
    state = {str(2**i): 49_562 * 2**i for i in range(4, 16)}
    cost = ONCE[0]["cost"] | {"state_bytes": state}
    names = ("interpolation_16x_tuned", "a[/b] [bold]x :rocket:", "混合模型[bold]")
    lines = _costs(dict.fromkeys(names, cost))
    for name in names:
        assert any(line.strip().startswith(name) for line in lines)
    head = next(line for line in lines if "params" in line).split()
    assert (head[3], head[-1]) == ("16", "32k")
    assert len(head) < 15
    assert "more lengths" in " ".join(lines)
    lines = _costs(dict.fromkeys(names, cost), width=160)
    assert len(next(line for line in lines if "params" in line).split()) == 15
    assert "more length" not in " ".join(lines)


def test_lines_and_bars_show_names_as_they_stand():
    name = "a[/b] [bold]x :rocket:"
    console = plain_console()
    with console.capture() as shown:
        console.print(f"{name}: trained already")
        console.print(progress(console).make_tasks_table(_tasks(console, name)))
    assert shown.get().count(name) == 3


def _tasks(console: Console, name: str):
    bar = progress(console)
    bar.add_task(name, total=1, note=name)
    return bar.tasks


def test_a_published_model_of_unknown_length_that_trains_no_step_is_not_marked():
    one = evaluation("published", FAR) | {"train_len": None, "trainings": [], "train_tokens": 0}
    only = ("length", "batch", "positions", "optimizer", "learning_rate", "loss", "loss_unit")
    one["setup"] |= dict.fromkeys(only) | {"steps": 0}
    one["cost"] |= {"training_flops": None}
    report = summarise([one | {"published": "Pretrained('x')", "train_flops": None}], {})
    assert all(p["trained"] for p in report["variants"]["published"]["contexts"])
    row = next(line for line in _printed(report) if line.lstrip().startswith("published"))
    assert row.split()[1] == "–"
    assert "*" not in row
    assert "512" not in variant_table(report)
    assert measure_table(report).count("beyond") == 0
    draw_measure(report, LIGHT, narrow=True)
