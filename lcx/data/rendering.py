"""From turns to a document: its bytes, what is trained of them, and where special tokens stand.

What is trained is found by rendering prefixes: the turns before an answer with the assistant's
header open, then through the answer. The difference is the answer with what ends it. Positions
count, never the value of a token: what a user says is not trained, whatever it looks like.

What a turn says cannot forge a special token: while a template renders, each in there is written
as a character that no turn has, and put back when the template's own have been found.
"""

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from lcx.data.documents import Marks, Spans
from lcx.data.templates import ChatTemplate, Turn

EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")
"""What templates of models that think put before an answer without a thought. Nobody said it."""
UNUSED = range(0xF0000, 0xFFFFE)
"""Characters for private use, of Unicode's plane 15."""


class Rendered(NamedTuple):
    """A conversation as a document, without the BOS that begins every document."""

    text: bytes
    marks: Marks


class _Hidden:
    """Turns whose texts hold no special token, and how to put back what was in them."""

    def __init__(self, template: ChatTemplate, turns: Sequence[Turn]):
        form = template.form()
        names = sorted({n for n in (*form.special, form.bos) if n}, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")
        texts = "".join(turn.text for turn in turns)
        used = set(texts)
        free = (char for char in map(chr, UNUSED) if char not in used)
        self._for = {name: next(free) for name in dict.fromkeys(self.pattern.findall(texts))}
        self._back = str.maketrans({char: name for name, char in self._for.items()})
        self.turns = [
            turn._replace(text=self.pattern.sub(lambda m: self._for[m[0]], turn.text))
            for turn in turns
        ]

    def bytes_of(self, text: str) -> bytes:
        """What a stretch of the rendered text says; half of a surrogate pair is kept as it is."""
        return text.translate(self._back).encode(errors="surrogatepass")


def rendered(template: ChatTemplate, turns: Sequence[Turn], everything: bool = False) -> Rendered:
    """A whole conversation, of which the answers are scored, or everything.

    Raises ValueError where the template has no form for it, or where it renders a turn otherwise
    once others follow, so that what is trained could not be told.
    """
    hidden = _Hidden(template, turns)
    whole = template.text(hidden.turns, header=False)
    spans = None if everything else _answers(template, hidden.turns, whole)
    return _document(template, hidden, whole, spans)


def prompt(template: ChatTemplate, turns: Sequence[Turn]) -> Rendered:
    """The beginning of an answer: turns with the assistant's header open. Nothing is scored."""
    hidden = _Hidden(template, turns)
    return _document(template, hidden, template.text(hidden.turns, header=True), ())


def _answers(template: ChatTemplate, turns: Sequence[Turn], whole: str) -> Spans:
    """Characters [first, last) of the answers, each with what ends it."""
    spans, between = [], template.form().between
    for number, turn in enumerate(turns):
        if turn.role != "assistant" or not turn.trained:
            continue
        before = template.text(turns[:number], header=True)
        through = template.text(turns[: number + 1], header=False)
        first, answer = len(before), through[len(before) :]
        if not EMPTY_THOUGHT.match(turn.text) and (thought := EMPTY_THOUGHT.match(answer)):
            answer = answer[thought.end() :]
            first += thought.end() if whole.startswith(thought[0], first) else 0
        last = first + len(answer)
        if not (
            through.startswith(before)
            and whole.startswith(before)
            and whole.startswith(answer, first)
        ):
            raise ValueError(
                f"the template does not render turn {number + 1} as its header for an answer and "
                "the answer, or otherwise once other turns follow: what is trained could not be "
                "told"
            )
        if between and whole.startswith(between, last):
            last += len(between)
        spans.append((first, last))
    return tuple(spans)


def _document(template: ChatTemplate, hidden: _Hidden, whole: str, spans: Spans | None) -> Rendered:
    """From characters, without what was hidden, to bytes."""
    form = template.form()
    names = [match.span() for match in hidden.pattern.finditer(whole)]
    begin = 0
    if form.bos and names and whole[: names[0][1]] == form.bos:
        begin = names.pop(0)[1]  # the document has it already
    special = [s for s in names if whole[slice(*s)] in form.special]
    cuts = sorted({begin, len(whole), *(at for s in (*special, *(spans or ())) for at in s)})
    parts = [hidden.bytes_of(whole[a:b]) for a, b in pairwise(cuts)]
    at = dict(zip(cuts, accumulate(map(len, parts), initial=0), strict=True))
    scored = None if spans is None else tuple((at[a], at[b]) for a, b in spans)
    return Rendered(b"".join(parts), Marks(scored, tuple((at[a], at[b]) for a, b in special)))
