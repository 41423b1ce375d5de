"""`lcx generate --chat`: questions from the terminal, answers as they are written."""

import codecs
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lcx import cache, spec
from lcx.command.writing import Writer, open_writer, parsed, say_if_long
from lcx.data import Conversations, Pairs
from lcx.data.encoding import encode
from lcx.data.jinja import Jinja
from lcx.data.rendering import prompt
from lcx.data.templates import ChatTemplate, Turn
from lcx.decoding import Decoding, Search
from lcx.experiment import TABLES
from lcx.generate import Generator
from lcx.huggingface.state_dict import holds_model
from lcx.opened import open_run
from lcx.parallel.xla import keep_compiled
from lcx.progress import plain_console
from lcx.types import Ids


class Asked(NamedTuple):
    """What was asked."""

    folder: Path
    question: str | None
    """The only one; None: they are typed, a line each."""
    system: str | None
    template: str | None
    new: int
    """Tokens of an answer, at most."""
    decoding: str
    seed: int
    """Of the first answer; others count on from it."""
    stop: tuple[str, ...]


def chat(asked: Asked) -> None:
    """Answer questions in turn, each with all that was said before it.

    Raises ValueError, FileNotFoundError for what cannot be done, before anything long.
    """
    keep_compiled(cache.folder() / "xla")
    decoding = parsed("--decoding", asked.decoding, Decoding | Search, "Greedy()")
    if asked.question == "":
        raise ValueError("--prompt is empty: ask something, or leave it out to be asked for it")
    template = _template(asked)
    writer = open_writer(asked.folder)
    special, stops = writer.tokenizer.special, template.stops()
    generator = Generator(
        writer.model,
        writer.params,
        decoding,
        stop=(*writer.ends, *(special[stop] for stop in stops if stop in special)),
        stop_strings=(*(stop for stop in stops if stop not in special), *asked.stop),
        tokenizer=writer.tokenizer,
    )
    turns = [] if asked.system is None else [Turn("system", asked.system)]
    for number, question in enumerate(_questions(asked)):
        turns.append(Turn("user", question))
        ids = _ids(template, turns, writer)
        say_if_long(writer, "conversation", len(ids) + asked.new)
        answer = _print_answer(generator, writer, ids, asked.new, asked.seed + number)
        turns.append(Turn("assistant", answer.strip()))


def _template(asked: Asked) -> ChatTemplate:
    """The one that was asked for, that a run was trained with, or that a published model has."""
    if asked.template is not None:
        made = spec.parse(asked.template, TABLES["chat templates"], "--template")
        if not isinstance(made, ChatTemplate):
            raise ValueError(f"--template: {asked.template} is none; write ChatML(), say")
        return made
    if holds_model(asked.folder):
        try:
            made = Jinja(str(asked.folder.resolve()))
            made.form()
        except ValueError as error:
            raise ValueError(f"--chat: {error}; --template says how turns are written") from None
        return made
    source = getattr(open_run(asked.folder).experiment.data, "source", None)
    if not isinstance(source, Conversations | Pairs):
        raise ValueError(
            f"--chat: {asked.folder} was not trained on conversations; --template says how turns "
            "are written, 'Plain()' say"
        )
    return source.template


def _questions(asked: Asked) -> Iterator[str]:
    if asked.question is not None:
        yield asked.question
        return
    typed = sys.stdin.isatty()
    if typed:
        plain_console(stderr=True).print("Ctrl-D ends the conversation", style="dim")
    while True:
        try:
            line = input("> " if typed else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _ids(template: ChatTemplate, turns: list[Turn], writer: Writer) -> Ids:
    begun = prompt(template, turns)
    said = encode(begun.text, begun.marks, writer.tokenizer)
    return np.array([writer.tokenizer.bos, *said], np.int32)


def _print_answer(generator: Generator, writer: Writer, ids: Ids, new: int, seed: int) -> str:
    letters, answer = codecs.getincrementaldecoder("utf-8")("replace"), ""

    def put(text: str) -> None:
        nonlocal answer
        # of what stands before the first word nothing is shown
        shown = text if answer.strip() else text.lstrip()
        answer += text
        print(shown, end="", flush=True)

    for (part,) in generator.stream([ids], new, seed):
        put(letters.decode(writer.tokenizer.decode(part.tokens)))
    put(letters.decode(b"", final=True))
    print()
    return answer
