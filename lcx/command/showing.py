"""`lcx data`: what a variant is trained on, as the model reads it, and what of it is scored."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from rich.console import Console
from rich.text import Text

from lcx.data import Corpus, PairedTexts, Task, Texts, Tokenizer
from lcx.experiment import Train, choose
from lcx.experiment_file import load
from lcx.losses import OfPairs
from lcx.progress import plain_console
from lcx.types import Ids
from lcx.wording import plural

SCORED, UNSCORED, SPECIAL = "green", "dim", "reverse"
OPEN, CLOSE = "\u27e6", "\u27e7"
"""Around what is scored, where there is no colour."""
INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that would move the cursor, or turn the text round."""


class Piece(NamedTuple):
    """A document of a row, or the part of one that it has room for."""

    ids: Ids
    scored: Bool[np.ndarray, " n"]
    """Whether each is a target that counts; the first is none."""
    first: int
    """Where its first token stands in its document; BOS is at 0."""


def show(file: Path, count: int, only: str | None, assignments: tuple[str, ...]) -> None:
    """Print the first `count` pieces of documents that each chosen variant reads in training.

    Variants of the same data, length and seed read the same.
    """
    if count < 1:
        raise ValueError(f"--show must be at least 1, not {count}")
    experiments, chosen = choose(load(file).experiments, only, assignments)
    alike: dict[tuple[Task, Train, bool], list[str]] = {}
    for name in chosen:
        data, train = experiments[name].data, experiments[name].train
        read = Train(length=train.length, seed=train.seed)
        alike.setdefault((data, read, isinstance(train.loss, OfPairs)), []).append(name)
    console = plain_console()
    for (data, train, pairs), names in alike.items():
        texts = data.load()
        if isinstance(texts, PairedTexts) and not pairs:
            texts = texts.preferred
        said = texts.describe()
        title = f"{', '.join(names)}: {', '.join(said.values())}"
        console.print(title, style="bold", soft_wrap=True)
        for note in texts.notes:
            console.print(note, style="yellow", soft_wrap=True)
        _show(texts, train, count, console)


def _show(texts: Texts, train: Train, count: int, console: Console) -> None:
    total, counted, number = 0, 0, 0
    for number, piece in zip(range(1, count + 1), _pieces(texts, train), strict=False):
        tokens, scored = len(piece.ids) - 1, int(piece.scored.sum())
        total, counted = total + tokens, counted + scored
        place = f"tokens {piece.first} to {piece.first + tokens} of a document"
        console.print(f"\n{number}. {place}, {_share(scored, tokens)}", style="cyan")
        console.print(spelled(piece, texts, _coloured(console)), soft_wrap=True)
    key = Text.assemble(
        ("scored", SCORED), " ", ("not scored", UNSCORED), " ", ("special", SPECIAL)
    )
    console.print()
    console.print(key if _coloured(console) else f"{OPEN}scored{CLOSE}")
    console.print(
        f"{plural(number, 'piece')} of {train.length} tokens at most: "
        f"{plural(total, 'target')}, {_share(counted, total)}"
    )
    if isinstance(texts, Corpus):
        every, scored = texts.tokens("train"), texts.scored("train")
        documents = len(texts.documents("train"))
        console.print(
            f"training split: {plural(documents, 'document')}, "
            f"{plural(every - documents, 'target')}, {_share(scored, every - documents)}"
        )


def _pieces(texts: Texts, train: Train) -> Iterator[Piece]:
    """What training reads, in its order, without end: each row's documents, one after the other."""
    count = 2 if isinstance(texts, PairedTexts) else 1
    batches = texts.batches(train.length, count, train.seed)
    rows = (
        {name: np.asarray(array)[index] for name, array in batch.items()}
        for batch in batches
        for index in range(count)
    )
    for row in rows:
        for segment in range(1, int(row["segments"].max()) + 1):
            where = row["segments"] == segment
            ids, targets = row["tokens"][where], row["targets"][where]
            scored = np.append(False, targets >= 0)
            if scored[-1]:
                ids = np.append(ids, targets[-1])  # a target alone
            yield Piece(ids, scored[: len(ids)], int(row["positions"][where][0]))


def spelled(piece: Piece, texts: Texts, coloured: bool) -> Text:
    """A piece as text, special tokens by their names; symbols that stand for no text by number."""
    tokenizer = texts.tokenizer
    names, decode = dict[int, str](), _numbers
    if isinstance(tokenizer, Tokenizer):
        names, decode = {i: name for name, i in tokenizer.special.items()}, tokenizer.decode
    text = Text()
    for scored, run in groupby(zip(piece.ids.tolist(), piece.scored, strict=True), lambda t: t[1]):
        if scored and not coloured:
            text.append(OPEN)
        ids = [index for index, _ in run]
        for special, tokens in groupby(ids, lambda index: index in names):
            style = SCORED if scored else UNSCORED
            if special:
                text.append("".join(names[index] for index in tokens), f"{style} {SPECIAL}")
            else:
                said = decode(np.array([*tokens], np.int32)).decode(errors="replace")
                text.append(INVISIBLE.sub(lambda m: repr(m[0])[1:-1], said), style)
        if scored and not coloured:
            text.append(CLOSE)
    return text


def _numbers(ids: Ids) -> bytes:
    return "".join(f" {i}" for i in ids.tolist()).encode()


def _coloured(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.0%} scored"
