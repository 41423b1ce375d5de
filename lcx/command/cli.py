"""The `lcx` command."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, UseAppendAction, arg

from lcx import spec
from lcx.command.reference import reference
from lcx.command.session import Session, open_session
from lcx.command.wavelengths import print_wavelengths, wavelengths, write_picture
from lcx.cost import cost_of
from lcx.evaluation.metrics import Evaluation
from lcx.experiment import TABLES, choose, load
from lcx.parallel.processes import PREEMPTED, JoinError, Preempted, is_primary, join, leave
from lcx.planning.chips import CHIPS, chip_named
from lcx.planning.plan import check_devices, elsewhere, print_plans
from lcx.positions import POSITIONS, SCALINGS, TRAINING_POSITIONS, Learned, PositionScheme, Scaling
from lcx.report.writer import print_costs, print_table, write_report
from lcx.tracebacks import own_lines, shown
from lcx.training.checkpoint import CorruptCheckpointError
from lcx.training.log import NonFiniteLossError
from lcx.training.runs import write_json

File = Annotated[Path, arg(help="experiment file, experiments/quickstart.py for one")]
Out = Annotated[
    Path | None, arg(help="folder of the results; by default runs/ and the file's name")
]
Only = Annotated[str | None, arg(help="variants, separated by commas; by default all")]
Seeds = Annotated[
    int | None,
    arg(
        help="runs of each variant, from other first values and in another order of the data; by "
        "default as the file says"
    ),
]
Set = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        name="set",
        help="change a field of every chosen variant: train.steps=100, or "
        "'model.pattern.0.mixer=LinearAttention(heads=4)'. May be given again",
    ),
]

POSITION_HELP = "the scheme, such as 'RoPE(scaling=YaRN(4, original=256))'"


def train_command(
    file: Positional[File],
    out: Out = None,
    only: Only = None,
    seeds: Seeds = None,
    assignments: Set = (),
) -> None:
    """Train the variants of an experiment file; one that was interrupted resumes."""
    with open_session(file, out, only, assignments, seeds) as session:
        for name in session.order:
            session.train(name)


def evaluate_command(
    file: Positional[File],
    out: Out = None,
    only: Only = None,
    seeds: Seeds = None,
    assignments: Set = (),
) -> None:
    """Evaluate trained variants; a result that is there already is reused."""
    with open_session(file, out, only, assignments, seeds) as session:
        report(session, {name: session.evaluate(name) for name in session.chosen})


def compare_command(
    file: Positional[File],
    out: Out = None,
    only: Only = None,
    seeds: Seeds = None,
    assignments: Set = (),
) -> None:
    """Train and evaluate every variant, and write the report: the main job."""
    with open_session(file, out, only, assignments, seeds) as session:
        results = {}
        for name in session.order:
            session.train(name)
            if name in session.chosen:
                results[name] = session.evaluate(name)
        report(session, results)


def report(session: Session, results: dict[str, list[Evaluation]]) -> None:
    """The page, the pictures and the table of the chosen variants."""
    if not is_primary():
        return
    in_order = [result for name in session.chosen for result in results[name]]
    curves = {name: [r.read_metrics() for r in session.runs(name)] for name in session.chosen}
    folder = session.out / "report"
    written = write_report(folder, session.file.path.stem, session.file.question, in_order, curves)
    print_table(written, session.console)
    session.console.print(f"The page: {folder / 'report.html'}", highlight=False)


def list_command(
    folder: Positional[Path] = Path("experiments"),
    cost: Annotated[
        Path | None,
        arg(help="experiment file: list what each of its variants takes"),
    ] = None,
    markdown: Annotated[bool, arg(help="print docs/reference.md instead")] = False,
) -> None:
    """List mixers, position schemes, tasks and experiments; or what an experiment takes."""
    console = Console()
    if markdown:
        print(reference(), end="")
        return
    if cost is not None:
        variants = load(cost).experiments.items()
        lengths = sorted({c for _, e in variants for c in e.evaluation.contexts})
        print_costs({n: cost_of(e.model, e.train.length, lengths) for n, e in variants}, console)
        return
    for title, table in TABLES.items():
        rows = {name: (cls.__doc__ or "").strip().split("\n")[0] for name, cls in table.items()}
        console.print(_listing(title, rows))
    found = {}
    for path in sorted(folder.glob("*.py")):
        question = load(path).question.split("\n")[0]
        found[str(path)] = question
    console.print(_listing("experiments", found or {"none": f"no experiment file in {folder}/"}))


def positions_command(
    position: Positional[Annotated[str, arg(metavar="SPEC", help=POSITION_HELP)]],
    train_len: Annotated[int, arg(help="tokens of the texts that the model was trained on")],
    eval_len: Annotated[int, arg(help="tokens of the texts that it is to read")],
    width: Annotated[int, arg(help="features of a head")] = 64,
    out: Annotated[Path, arg(help="the picture, .png or .svg")] = Path("runs/positions.png"),
) -> None:
    """Show which rotary pairs a longer text interpolates, and which it extrapolates."""
    known = POSITIONS | SCALINGS | TRAINING_POSITIONS | {"Learned": Learned}
    scheme = spec.parse(position, known)
    if not isinstance(scheme, PositionScheme):
        fits = f"; write RoPE(scaling={position})" if isinstance(scheme, Scaling) else ""
        raise ValueError(f"{position} is no position scheme{fits}")
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out {out}: the picture's name must end in .png, .svg or .pdf")
    waves = wavelengths(scheme, width, train_len, eval_len)
    console = Console()
    print_wavelengths(waves, console)
    write_picture(waves, out)
    console.print(f"The picture: {out}", highlight=False)


def plan_command(
    file: Positional[File],
    devices: Annotated[int, arg(help="how many devices there would be")],
    only: Only = None,
    assignments: Set = (),
    chip: Annotated[str, arg(help=f"which: {', '.join(CHIPS)}")] = "v5p",
    out: Annotated[Path | None, arg(help="also write the numbers here, as JSON")] = None,
) -> None:
    """Tell what training would take on many devices, without having them."""
    chip_named(chip).wire(devices)
    experiments, chosen = choose(load(file).experiments, only, assignments)
    for name in chosen:
        try:
            check_devices(experiments[name], devices)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    console = Console()
    plans = []
    for name in chosen:
        with console.status(f"{name}: compiling for {devices} devices"):
            plans.append(elsewhere([str(file), name, chip, *assignments], devices))
    print_plans(plans, console)
    if out is not None:
        write_json(out, {made.variant: asdict(made) for made in plans})


def _listing(title: str, rows: dict[str, str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, line in rows.items():
        table.add_row(name, line)
    return table


COMMANDS = {
    "compare": compare_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "list": list_command,
    "positions": positions_command,
    "plan": plan_command,
}


ERRORS = (
    ValueError,
    FileNotFoundError,
    CorruptCheckpointError,
    NonFiniteLossError,
    JoinError,
)
"""What the user can mend, or has to know."""


def main() -> None:
    """Entry point. Errors of the user's input end in one clear line and exit code 2.

    Errors of the user's code end in the lines of it that led there, and exit code 1. With
    LCX_TRACEBACK set both end in Python's traceback. A process that was asked to end, and has saved
    its work, ends with exit code 75 (`lcx.parallel.processes.PREEMPTED`).
    """
    try:
        join()
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="lcx", description=__doc__)
    except Preempted as preempted:
        Console(stderr=True, quiet=not is_primary()).print(str(preempted), highlight=False)
        sys.exit(PREEMPTED)
    except Exception as error:
        message = None if os.environ.get("LCX_TRACEBACK") else _told(error)
        if message is None:
            raise
        Console(stderr=True, soft_wrap=True).print(message, highlight=False)
        leave(2 if isinstance(error, ERRORS) else 1)


def _told(error: Exception) -> str | None:
    """What is said of an error; None: it is lcx's own, and the whole traceback is needed."""
    if isinstance(error, ERRORS):
        lines = own_lines(error)
        where = f" ({lines[-1].filename}, line {lines[-1].lineno})" if lines else ""
        return f"[bold red]error:[/] {escape(f'{error}{where}')}"
    if (text := shown(error)) is None:
        return None
    return f"{escape(text)}\n[dim]LCX_TRACEBACK=1 shows the lines of lcx and JAX, too[/]"
