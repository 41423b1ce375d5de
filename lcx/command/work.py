"""What the commands do that train, measure, report and plan."""

from dataclasses import asdict, replace
from pathlib import Path

from rich.text import Text

from lcx import spec
from lcx.command.opening import Asked, open_session
from lcx.command.pages import note_failures, write_pages
from lcx.command.session import Session
from lcx.command.wavelengths import print_wavelengths, wavelengths, write_picture
from lcx.cost import cost_of
from lcx.data import BPE, Data, Task
from lcx.data.documents import Documents
from lcx.evaluation.metrics import Evaluation
from lcx.experiment import Experiments, choose
from lcx.parallel.processes import is_primary
from lcx.planning.chips import chip_named
from lcx.planning.plan import check_devices, elsewhere, print_plans
from lcx.positions import POSITIONS, SCALINGS, TRAINING_POSITIONS, Learned, PositionScheme, Scaling
from lcx.progress import plain_console
from lcx.report.writer import print_costs
from lcx.training.kept import open_experiments
from lcx.training.runs import write_json
from lcx.variants import check_links, cost_length, teacher_model
from lcx.wording import listed


def train(asked: Asked) -> int:
    """`lcx train`: the exit code."""
    with open_session(asked, one_page=False) as session:
        for name in session.order:
            session.train(name)
        return _end(session, [])


def evaluate(asked: Asked) -> int:
    """`lcx evaluate`: the exit code."""
    with open_session(asked) as session:
        for name in session.order:
            if session.experiments[name].as_published:  # there is nothing to train
                session.train(name)
        session.check_trained()
        return _end(session, [x for name in session.chosen for x in session.evaluate(name)])


def compare(asked: Asked) -> int:
    """`lcx compare`: the exit code."""
    with open_session(asked) as session:
        results = []
        for name in session.order:
            session.train(name)
            if name in session.chosen:
                results += session.evaluate(name)
        results.sort(key=lambda result: session.chosen.index(result["variant"]))
        return _end(session, results)


def _end(session: Session, results: list[Evaluation]) -> int:
    """Write the page that the results stand on, if there are any; the exit code."""
    if is_primary():
        tried = [run.name for name in session.order for run in session.runs(name)]
        note_failures(session.out, session.failures, tried)
        if results:
            write_pages(session.out, session.console, results[0])
    if session.failures:
        session.console.print(f"failed: {listed(list(session.failures))}", style="red")
    return int(bool(session.failures))


def write_again(folder: Path, baseline: str | None) -> None:
    """`lcx report`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    write_pages(folder, plain_console(), baseline=baseline)


def sized(experiments: Experiments) -> Experiments:
    """With as many token ids as the tokenizer will have, where nobody says; no text is read for it.

    A BPE that is yet to be trained counts as large as it is asked to be.
    """
    return {
        name: replace(
            e, model=replace(e.model, vocab=e.model.vocab or _expected_vocabulary(e.data))
        )
        for name, e in experiments.items()
    }


def _expected_vocabulary(task: Task) -> int:
    if not isinstance(task, Data):
        return task.load().tokenizer.vocab_size
    if isinstance(task.tokenizer, BPE):
        return task.tokenizer.vocab
    return task.tokenizer.load(Documents([], lambda i: b"")).vocab_size


def list_costs(file: Path) -> None:
    """`lcx list --cost`."""
    variants = sized(open_experiments(file).experiments)
    check_links(variants)
    lengths = sorted({c for e in variants.values() for c in e.evaluation.contexts})
    costs = {
        n: cost_of(e.model, cost_length(n, variants), lengths, e.tune, teacher_model(n, variants))
        for n, e in variants.items()
    }
    print_costs(costs, plain_console())


def positions(position: str, train_len: int, eval_len: int, width: int, out: Path) -> None:
    """`lcx positions`."""
    known = POSITIONS | SCALINGS | TRAINING_POSITIONS | {"Learned": Learned}
    scheme = spec.parse(position, known)
    if not isinstance(scheme, PositionScheme):
        fits = f"; write RoPE(scaling={position})" if isinstance(scheme, Scaling) else ""
        raise ValueError(f"{position} is no position scheme{fits}")
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out {out}: the picture's name must end in .png, .svg or .pdf")
    waves = wavelengths(scheme, width, train_len, eval_len)
    console = plain_console()
    print_wavelengths(waves, console)
    write_picture(waves, out)
    console.print(f"The picture: {out}")


def plan(
    file: Path,
    devices: int,
    only: str | None,
    assignments: tuple[str, ...],
    chip: str,
    out: Path | None,
) -> None:
    """`lcx plan`."""
    chip_named(chip).wire(devices)
    experiments, chosen = choose(open_experiments(file).experiments, only, assignments)
    experiments |= sized({name: experiments[name] for name in chosen})
    for name in chosen:
        try:
            check_devices(experiments[name], devices)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    console = plain_console()
    plans = []
    for name in chosen:
        with console.status(Text(f"{name}: compiling for {devices} devices")):
            size = f"model.vocab={experiments[name].model.vocab}"
            plans.append(elsewhere([str(file), name, chip, *assignments, size], devices))
    print_plans(plans, console)
    if out is not None:
        write_json(out, {made.variant: asdict(made) for made in plans})
