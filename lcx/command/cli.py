"""The `lcx` command: what it takes.

What it does is imported when it is asked for, so that help is there at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from lcx import __version__
from lcx.planning.chips import CHIPS

FileOrFolder = Annotated[
    Path,
    arg(
        help="experiment file, experiments/quickstart.py for one; a folder of its runs; or a "
        "published model's folder, which is evaluated as it is"
    ),
]
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

Reuse = Annotated[
    FlagCreatePairsOff[bool],
    arg(
        help="take a finished run as it is, though its texts, code or beginning have changed; the "
        "page says so"
    ),
]

ABOUT = "What does a language model gain, and pay, as its context grows? (lcx --version: which lcx)"

POSITION_HELP = "the scheme, such as 'RoPE(scaling=YaRN(4, original=256))'"


def train_command(
    file: Positional[FileOrFolder],
    out: Out = None,
    only: Only = None,
    seeds: Seeds = None,
    assignments: Set = (),
    reuse: Reuse = False,
) -> int:
    """Train the variants of an experiment file; one that was interrupted resumes."""
    from lcx.command.work import Asked, train

    return train(Asked(file, out, only, assignments, seeds, reuse))


def evaluate_command(
    file: Positional[FileOrFolder],
    out: Out = None,
    only: Only = None,
    seeds: Seeds = None,
    assignments: Set = (),
    reuse: Reuse = False,
) -> int:
    """Evaluate trained variants; a result that is there already is reused."""
    from lcx.command.work import Asked, evaluate

    return evaluate(Asked(file, out, only, assignments, seeds, reuse))


def compare_command(
    file: Positional[FileOrFolder],
    out: Out = None,
    only: Only = None,
    seeds: Seeds = None,
    assignments: Set = (),
    reuse: Reuse = False,
) -> int:
    """Train and evaluate every variant, and write the report: the main job."""
    from lcx.command.work import Asked, compare

    return compare(Asked(file, out, only, assignments, seeds, reuse))


def report_command(
    folder: Positional[Annotated[Path, arg(help="folder of runs, runs/quickstart for one")]],
    baseline: Annotated[
        str | None, arg(help="the variant that the others are compared against")
    ] = None,
) -> None:
    """Write the pages of a folder's runs again, from what is evaluated by now."""
    from lcx.command.work import write_again

    write_again(folder, baseline)


def check_command(
    file: Positional[Annotated[Path, arg(help="experiment file with classes of your own")]],
    only: Only = None,
    assignments: Set = (),
) -> int:
    """Try the mixers, sparsities and positions of your own against the laws: causality and more.

    Seconds each, in miniature; no data is read. Exit code 1 where a law is broken.
    """
    from lcx.command.check import check

    return check(file, only, assignments)


def generate_command(
    folder: Positional[
        Annotated[Path, arg(help="a run, runs/quickstart/softmax for one; or a published model")]
    ],
    prompt: Annotated[
        str | None, arg(help="the beginning of the text; with --chat, the only question")
    ] = None,
    max_new: Annotated[int, arg(help="tokens to be written at most")] = 200,
    decoding: Annotated[
        str, arg(help="how tokens are chosen, 'TopP(0.9, temperature=0.8)' or 'BeamSearch(4)' say")
    ] = "Greedy()",
    seed: Annotated[int, arg(help="of the first sample; others count on from it")] = 0,
    samples: Annotated[int, arg(help="texts to be written; of a BeamSearch, the best")] = 1,
    stop: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(help="a string that ends the text, and is left out. May be given again"),
    ] = (),
    guard: Annotated[
        str | None,
        arg(help="what is done to loops, 'RepetitionGuard(act=Resample(Temperature(1.2)))' say"),
    ] = None,
    json: Annotated[
        FlagCreatePairsOff[bool], arg(help="print the ids, too, as JSON, when all is written")
    ] = False,
    chat: Annotated[
        FlagCreatePairsOff[bool],
        arg(help="answer questions, a line of the terminal each, as turns of one conversation"),
    ] = False,
    template: Annotated[
        str | None,
        arg(help="how turns are written, 'ChatML()' say; by default as the model was trained"),
    ] = None,
    system: Annotated[str | None, arg(help="what stands before the first question")] = None,
) -> None:
    """Write on from a prompt, or answer questions, by a trained variant of any mixer."""
    if chat:
        if json or samples > 1 or guard is not None:
            raise ValueError("--chat: without --json, --samples and --guard")
        from lcx.command import chatting

        asked = (folder, prompt, system, template, max_new, decoding, seed, stop)
        chatting.chat(chatting.Asked(*asked))
        return
    if prompt is None:
        raise ValueError("--prompt: give the beginning of a text, or ask for --chat")
    if template is not None or system is not None:
        raise ValueError("--template and --system are for --chat")
    from lcx.command.writing import Asked, generate

    generate(Asked(folder, prompt, max_new, decoding, seed, samples, stop, guard, json))


def export_command(
    folder: Positional[Annotated[Path, arg(help="a run, runs/quickstart/softmax for one")]],
    to: Annotated[Path, arg(help="a folder that is not there yet, or is empty")],
    adapter: Annotated[
        bool, arg(help="of a tuned run, what was trained alone, for peft to read")
    ] = False,
) -> None:
    """Write a trained variant as models are published: for transformers, or as RWKV's are."""
    from lcx.command.exporting import export, export_adapter

    (export_adapter if adapter else export)(folder, to)


def list_command(
    folder: Positional[Path] = Path("experiments"),
    cost: Annotated[
        Path | None,
        arg(help="experiment file: list what each of its variants takes"),
    ] = None,
    markdown: Annotated[
        FlagCreatePairsOff[bool], arg(help="print docs/reference.md instead")
    ] = False,
) -> None:
    """List mixers, position schemes, tasks and experiments; or what an experiment takes."""
    if markdown:
        from lcx.command.reference import reference

        print(reference(), end="")
    elif cost is not None:
        from lcx.command.work import list_costs

        list_costs(cost)
    else:
        from lcx.command.listing import print_listing

        print_listing(folder)


def data_command(
    file: Positional[File],
    show: Annotated[int, arg(help="documents, or pieces of long ones, that are shown")] = 3,
    only: Only = None,
    assignments: Set = (),
) -> None:
    """Show what a variant is trained on, as the model reads it, and what of it is scored."""
    from lcx.command import showing

    showing.show(file, show, only, assignments)


def positions_command(
    position: Positional[Annotated[str, arg(metavar="SPEC", help=POSITION_HELP)]],
    train_len: Annotated[int, arg(help="tokens of the texts that the model was trained on")],
    eval_len: Annotated[int, arg(help="tokens of the texts that it is to read")],
    width: Annotated[int, arg(help="features of a head")] = 64,
    out: Annotated[Path, arg(help="the picture, .png or .svg")] = Path("runs/positions.png"),
) -> None:
    """Show which rotary pairs a longer text interpolates, and which it extrapolates."""
    from lcx.command.work import positions

    positions(position, train_len, eval_len, width, out)


def plan_command(
    file: Positional[FileOrFolder],
    devices: Annotated[int, arg(help="how many devices there would be")],
    only: Only = None,
    assignments: Set = (),
    chip: Annotated[str, arg(help=f"which: {', '.join(CHIPS)}")] = "v5p",
    out: Annotated[Path | None, arg(help="also write the numbers here, as JSON")] = None,
) -> None:
    """Tell what training would take on many devices, without having them."""
    from lcx.command.work import plan

    plan(file, devices, only, assignments, chip, out)


COMMANDS = {
    "compare": compare_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "generate": generate_command,
    "export": export_command,
    "check": check_command,
    "list": list_command,
    "data": data_command,
    "positions": positions_command,
    "plan": plan_command,
}


def main() -> None:
    """Entry point. Errors of the user's input end in one clear line and exit code 2.

    Errors of the user's code end in the lines of it that led there, and exit code 1, as does a
    command some of whose variants failed. With LCX_TRACEBACK set errors end in Python's traceback.
    A process that was asked to end, and has saved its work, ends with a code that says by whom
    (`lcx.parallel.preemption`).
    """
    if sys.argv[1:] == ["--version"]:
        print(f"lcx {__version__}")
        return
    try:
        code = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="lcx", description=ABOUT)
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from lcx.command.errors import end

        if not end(error):
            raise
    else:
        sys.exit(code or 0)
