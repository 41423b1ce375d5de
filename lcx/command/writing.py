"""`lcx generate`: text out of a run, or of a published model, in the terminal."""

import codecs
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lcx import cache, spec
from lcx.data import Tokenizer, TokenizerFile
from lcx.data.documents import Documents
from lcx.decoding import BeamSearch, Decoding, Sampling, Search
from lcx.experiment import TABLES
from lcx.generate import Generator, Written
from lcx.huggingface import Pretrained
from lcx.huggingface.state_dict import holds_model
from lcx.model import LM
from lcx.opened import open_run
from lcx.parallel.xla import keep_compiled
from lcx.progress import plain_console
from lcx.repetition import RepetitionGuard, Resample
from lcx.types import Ids, Params


class Asked(NamedTuple):
    """What `lcx generate` was asked."""

    folder: Path
    prompt: str
    new: int
    decoding: str
    seed: int
    samples: int
    stop: tuple[str, ...]
    guard: str | None
    as_json: bool


class Writer(NamedTuple):
    """A model that writes, and what its tokens stand for."""

    model: LM
    params: Params
    tokenizer: Tokenizer
    trained: int
    """Tokens of the texts that it was trained on; 0 where nobody says."""
    ends: tuple[int, ...]
    """Ids that end a text."""


def generate(asked: Asked) -> None:
    """Print what is written after the prompt, as it comes; with `as_json`, whole, with the ids.

    Raises ValueError, FileNotFoundError for what cannot be done, before anything long.
    """
    keep_compiled(cache.folder() / "xla")
    decoding = parsed("--decoding", asked.decoding, Decoding | Search, "Greedy()")
    guard = None
    if asked.guard is not None:
        guard = parsed("--guard", asked.guard, RepetitionGuard, "RepetitionGuard()")
    if not asked.prompt:
        raise ValueError("--prompt is empty: give the beginning of a text")
    if asked.samples < 1:
        raise ValueError(f"--samples must be at least 1, not {asked.samples}")
    writer = open_writer(asked.folder)
    ids = np.array(
        [writer.tokenizer.bos, *writer.tokenizer.encode(asked.prompt.encode())], np.int32
    )
    say = plain_console(stderr=True)
    if isinstance(decoding, Sampling) and decoding.temperature == 0:
        say.print("temperature 0 is greedy: nothing is drawn", style="dim")
    beams = isinstance(decoding, BeamSearch) and guard is None
    act = None if guard is None else guard.act
    draws = decoding.draws or (isinstance(act, Resample) and act.decoding.draws)
    if asked.samples > 1 and not (draws or beams):
        raise ValueError(
            f"--samples {asked.samples}: {asked.decoding} draws nothing, and writes the same text "
            "each time; a BeamSearch without a guard has as many texts as beams"
        )
    say_if_long(writer, "text", len(ids) + asked.new)
    generator = Generator(
        writer.model,
        writer.params,
        decoding,
        stop=writer.ends,
        stop_strings=asked.stop,
        tokenizer=writer.tokenizer,
    )
    if not (asked.as_json or beams or guard):
        _print_texts(asked, writer, ids, generator)
        return
    with say.status("writing"):
        if beams:
            (written,) = generator.best([ids], asked.new, asked.samples)
        else:
            written = generator.write([ids] * asked.samples, asked.new, asked.seed, guard)
    (_print_json if asked.as_json else _print_whole)(asked, writer, ids, written)


def say_if_long(writer: Writer, what: str, tokens: int) -> None:
    """A note where more tokens may stand there than the model was trained on."""
    if 0 < writer.trained < tokens:
        plain_console(stderr=True).print(
            f"the {what} may become {tokens} tokens long; the model was trained on "
            f"{writer.trained}",
            style="dim",
        )


def parsed(flag: str, text: str, kind: Any, example: str) -> Any:
    """What an expression stands for. Raises ValueError."""
    tables = ("decodings", "searches", "penalties", "guards against loops")
    names = {name: cls for table in tables for name, cls in TABLES[table].items()}
    made = spec.parse(text, names, flag)
    if not isinstance(made, kind):
        raise ValueError(f"{flag}: {text} is none; write {example}, say")
    spec.check(made, flag)
    return made


def open_writer(folder: Path) -> Writer:
    """A run's folder, or a published model's with its tokenizer.json."""
    if not holds_model(folder):
        run = open_run(folder)
        trained = run.experiment.train.length
        return Writer(run.model, run.params, run.tokenizer, trained, (run.tokenizer.bos,))
    weights = Pretrained(str(folder))
    model = weights.model()
    tokenizer = TokenizerFile(str(folder / "tokenizer.json")).load(Documents([], lambda i: b""))
    # BOS begins another text, whatever it is called
    ends = tuple({*weights.ends, tokenizer.bos})
    return Writer(model, weights.load(model), tokenizer, weights.trained_length or 0, ends)


def _print_json(asked: Asked, writer: Writer, ids: Ids, written: list[Written]) -> None:
    texts = [
        {
            "ids": text.tokens.tolist(),
            "text": _spelled(writer, text.tokens),
            "stopped": text.stopped,
            **({"seed": asked.seed + i} if math.isnan(text.score) else {"score": text.score}),
            **({"loops": text.loops} if asked.guard else {}),
        }
        for i, text in enumerate(written)
    ]
    prompt = {"text": asked.prompt, "ids": ids.tolist()}
    print(json.dumps({"prompt": prompt, "decoding": asked.decoding, "written": texts}, indent=1))


def _print_whole(asked: Asked, writer: Writer, ids: Ids, written: list[Written]) -> None:
    """Texts that are not known before their end."""
    print("\n\n".join(asked.prompt + _spelled(writer, text.tokens) for text in written))
    if asked.guard:
        loops = ", ".join(str(text.loops) for text in written)
        plain_console(stderr=True).print(f"loops that the guard has seen: {loops}", style="dim")


def _print_texts(asked: Asked, writer: Writer, ids: Ids, generator: Generator) -> None:
    """One sample after the other, each as it is written."""
    for sample in range(asked.samples):
        print(asked.prompt, end="", flush=True)
        letters = codecs.getincrementaldecoder("utf-8")("replace")
        for (part,) in generator.stream([ids], asked.new, asked.seed + sample):
            print(letters.decode(writer.tokenizer.decode(part.tokens)), end="", flush=True)
        print(letters.decode(b"", final=True), end="")
        print("\n" * (2 if sample + 1 < asked.samples else 1), end="")


def _spelled(writer: Writer, ids: Ids) -> str:
    return writer.tokenizer.decode(ids).decode(errors="replace")
