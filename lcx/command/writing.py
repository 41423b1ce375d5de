"""`lcx generate`: text out of a run, or of a published model, in the terminal."""

import codecs
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lcx import cache, spec
from lcx.data import Tokenizer, TokenizerFile
from lcx.data.documents import Documents
from lcx.decoding import Decoding
from lcx.experiment import TABLES
from lcx.generate import Generator, Ids, Written
from lcx.model import LM
from lcx.opened import open_run
from lcx.parallel.xla import keep_compiled
from lcx.pretrained import Pretrained
from lcx.progress import plain_console
from lcx.types import Params


class Asked(NamedTuple):
    """What `lcx generate` was asked."""

    folder: Path
    prompt: str
    new: int
    decoding: str
    seed: int
    samples: int
    stop: tuple[str, ...]
    as_json: bool


class Writer(NamedTuple):
    """A model that writes, and what its tokens stand for."""

    model: LM
    params: Params
    tokenizer: Tokenizer
    trained: int
    """Tokens of the texts that it was trained on; 0 where nobody says."""


def generate(asked: Asked) -> None:
    """Print what is written after the prompt, as it comes; with `as_json`, whole, with the ids.

    Raises ValueError, FileNotFoundError for what cannot be done, before anything long.
    """
    keep_compiled(cache.folder() / "xla")
    decoding = parsed(asked.decoding)
    if not asked.prompt:
        raise ValueError("--prompt is empty: give the beginning of a text")
    if asked.samples < 1:
        raise ValueError(f"--samples must be at least 1, not {asked.samples}")
    writer = open_writer(asked.folder)
    ids = np.array(
        [writer.tokenizer.bos, *writer.tokenizer.encode(asked.prompt.encode())], np.int32
    )
    say = plain_console(stderr=True)
    if getattr(decoding, "temperature", None) == 0:
        say.print("temperature 0 is greedy: every sample is the likeliest text", style="dim")
    if 0 < writer.trained < len(ids) + asked.new:
        say.print(
            f"the text may become {len(ids) + asked.new} tokens long; the model was trained on "
            f"{writer.trained}",
            style="dim",
        )
    tokens = writer.tokenizer.vocab_size
    generator = Generator(writer.model, writer.params, decoding, tokens=tokens)
    if asked.as_json:
        _print_json(asked, writer, ids, generator)
    else:
        _print_texts(asked, writer, ids, generator)


def parsed(decoding: str) -> Decoding:
    """The decoding that an expression stands for. Raises ValueError."""
    made = spec.parse(decoding, TABLES["decodings"] | TABLES["penalties"], "--decoding")
    if not isinstance(made, Decoding):
        raise ValueError(f"--decoding: {decoding} is no decoding; write Greedy(), say")
    spec.check(made, "--decoding")
    return made


def open_writer(folder: Path) -> Writer:
    """A run's folder, or a published model's with its tokenizer.json."""
    if not (folder / "config.json").exists():
        run = open_run(folder)
        trained = run.experiment.train.length
        return Writer(run.model, run.params, run.tokenizer, trained)
    weights = Pretrained(str(folder))
    model = weights.model()
    tokenizer = TokenizerFile(str(folder / "tokenizer.json")).load(Documents([], lambda i: b""))
    return Writer(model, weights.load(model), tokenizer, weights.trained_length or 0)


def _print_json(asked: Asked, writer: Writer, ids: Ids, generator: Generator) -> None:
    prompts = [ids] * asked.samples
    found = [_cut(asked, writer, w) for w in generator.write(prompts, asked.new, asked.seed)]
    texts = [
        {
            "ids": written.tokens.tolist(),
            "text": writer.tokenizer.decode(written.tokens).decode(errors="replace"),
            "stopped": written.stopped,
            "seed": asked.seed + i,
        }
        for i, written in enumerate(found)
    ]
    prompt = {"text": asked.prompt, "ids": ids.tolist()}
    print(json.dumps({"prompt": prompt, "decoding": asked.decoding, "written": texts}, indent=1))


def _cut(asked: Asked, writer: Writer, written: Written) -> Written:
    """The text up to the first stop string in it."""
    text = writer.tokenizer.decode(written.tokens)
    end = _first_stop(text, [s.encode() for s in asked.stop])
    return written if end is None else Written(writer.tokenizer.encode(text[:end]), True)


def _first_stop(text: bytes, stops: list[bytes]) -> int | None:
    """Where the first of the stop strings begins; None: there is none."""
    return min((at for at in map(text.find, stops) if at >= 0), default=None)


def _print_texts(asked: Asked, writer: Writer, ids: Ids, generator: Generator) -> None:
    """One sample after the other, each as it is written."""
    stops = [s.encode() for s in asked.stop]
    held = max(map(len, stops), default=1) - 1  # bytes that may be the beginning of a stop string
    for sample in range(asked.samples):
        print(asked.prompt, end="", flush=True)
        letters = codecs.getincrementaldecoder("utf-8")("replace")
        text, shown, end = b"", 0, None
        for (part,) in generator.stream([ids], asked.new, asked.seed + sample):
            text += writer.tokenizer.decode(part.tokens)
            end = _first_stop(text, stops)
            upto = max(shown, len(text) - held) if end is None else end
            print(letters.decode(text[shown:upto]), end="", flush=True)
            shown = upto
            if end is not None:
                break
        if end is None:
            print(letters.decode(text[shown:], final=True), end="")
        print("\n" * (2 if sample + 1 < asked.samples else 1), end="")
