"""The pages of a folder of runs: one for each protocol and data set that they were measured by."""

import json
from collections.abc import Collection, Mapping
from itertools import count
from pathlib import Path
from typing import cast

from rich.console import Console

from lcx import spec
from lcx.data import Texts
from lcx.evaluation.evaluate import describe_data
from lcx.evaluation.metrics import Evaluation, about
from lcx.experiment import Experiment, known
from lcx.experiment_file import RESERVED
from lcx.report.comparable import why_not_comparable
from lcx.report.writer import print_table, write_report
from lcx.training.kept import described, runs_in
from lcx.training.runs import Run, write_json

Group = dict[tuple[str, int], Evaluation]
"""The results on one page, by variant and seed."""


def check_together(variants: Mapping[str, tuple[Experiment, Texts]]) -> None:
    """Raise ValueError where variants cannot stand on one page; nothing has to be trained yet."""
    said = [
        {
            "variant": name,
            "protocol": spec.encode(experiment.evaluation),
            "about": about(experiment.evaluation),
            "data": describe_data(experiment, corpus),
        }
        for name, (experiment, corpus) in variants.items()
    ]
    for other in said[1:]:
        if reason := why_not_comparable(said[0], other):
            reason = reason.rstrip(".")
            raise ValueError(
                f"{reason}. Choose with --only those that go together, or give all the same"
            )


def write_pages(
    out: Path,
    console: Console,
    like: Evaluation | None = None,
    baseline: str | None = None,
) -> None:
    """Write a page for each protocol and data set of the runs in a folder, all of them on it.

    like: only the page that this result stands on. baseline: the variant that the others are
    compared against; the first otherwise. Raises ValueError where there is no result, or no such
    variant.
    """
    runs = runs_in(out)
    groups: list[Group] = []
    for run in runs:
        for result in cast(list[Evaluation], run.evaluations()):
            if not (fitting := [group for group in groups if _fits(result, group)]):
                groups.append(group := {})
                fitting = [group]
            # rather one of the very same protocol than one that lets it differ
            fitting.sort(key=lambda group: not _same_protocol(result, group))
            fitting[0][result["variant"], result["seed"]] = result  # the newest of them
    if like is not None:
        groups = [group for group in groups if _fits(like, group)]
        groups.sort(key=lambda group: not _same_protocol(like, group))
        groups = groups[:1]
    if not groups:
        raise ValueError(f"{out}: no run is evaluated yet (lcx evaluate)")
    names = dict.fromkeys(name for group in groups for name, _ in group)
    if baseline is not None:
        known(baseline, names, "--baseline")
    for group in groups:
        results = list(group.values())
        if baseline in {name for name, _ in group}:
            results.sort(key=lambda result: result["variant"] != baseline)
        _write_page(out, results, _failures(out), console)


def _fits(result: Evaluation, group: Group) -> bool:
    return not any(why_not_comparable(other, result) for other in group.values())


def _same_protocol(result: Evaluation, group: Group) -> bool:
    return any(other["protocol"] == result["protocol"] for other in group.values())


def note_failures(out: Path, failures: Mapping[str, str], tried: Collection[str]) -> None:
    """Keep which runs failed, and why, for every page that is written.

    tried: runs of which the others did not fail this time.
    """
    before = _failures(out)
    now = {name: said for name, said in before.items() if name not in tried} | dict(failures)
    if now != before:
        write_json(out / RESERVED / "failed.json", now)


def _failures(out: Path) -> dict[str, str]:
    path = out / RESERVED / "failed.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _write_page(
    out: Path,
    results: list[Evaluation],
    failures: Mapping[str, str],
    console: Console,
) -> None:
    def run_of(result: Evaluation) -> Run:
        return Run.of(out, result["variant"], result["seed"])

    title, question = described(run_of(results[0]))
    curves: dict[str, list] = {}
    for result in results:
        curves.setdefault(result["variant"], []).append(run_of(result).read_metrics())
    folder = _folder(out, results[0])
    report = write_report(folder, title, question, results, curves, failures)
    print_table(report, console)
    console.print(f"The page: {folder / 'report.html'}")


def _folder(out: Path, result: Evaluation) -> Path:
    """Where the page of results such as this one goes: another page's place is never taken."""
    kind = result["protocol"]["type"]
    for number in count(1):
        folder = out / RESERVED / (kind if number == 1 else f"{kind}-{number}")
        there = _page(folder / "report.json")
        if there is None or not why_not_comparable(there, result):
            return folder
    raise AssertionError


def _page(path: Path) -> Evaluation | None:
    try:
        report = json.loads(path.read_text())
        return report["stands_for"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
