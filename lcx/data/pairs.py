"""Pairs of answers to one prompt, of which one is preferred, as documents."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lcx.data.documents import Documents
from lcx.data.entries import made_of_entries
from lcx.data.rendering import Rendered, rendered
from lcx.data.templates import ChatTemplate, Plain, Turn
from lcx.data.turns import OddError, check_turns, side
from lcx.paths import GlobPath
from lcx.wording import plural

SIDES = ("chosen", "rejected")
FORMS = (
    '{"prompt": "...", "chosen": "...", "rejected": "..."}, each of them a text or messages, or '
    '{"chosen": [messages], "rejected": [messages]}, conversations with the same beginning'
)


@dataclass(frozen=True)
class Pairs:
    """A preferred answer and a rejected one to each prompt, for the loss `DPO`.

    Files of JSON, each a list of pairs; or of JSON Lines, with one in each line. One is

        {"id": ..., "prompt": "...", "chosen": "...", "rejected": "..."}
        {"prompt": [message, ...], "chosen": [message, ...], "rejected": [message, ...]}
        {"chosen": [message, ...], "rejected": [message, ...]}

    where a message is {"role": "user", "content": "..."}. Messages that do not begin with the
    assistant are whole conversations, and a prompt beside them is in there. What is scored of the
    two is what they do not share, from the first turn that differs: an answer of each. There may be
    a "system" prompt beside.

    `DPO` reads each answer, with its prompt, as a row of its own, beside the other's. Losses of
    single tokens train on the preferred answers alone, and evaluations measure on these.

    Odd is a pair with two equal answers, with prompts that differ, or of which a conversation is
    odd as in `Conversations`: an empty answer, say. Raises FileNotFoundError when no file matches,
    and ValueError, with the file and the line or the entry, for what is odd or has another form.
    """

    glob: GlobPath
    template: ChatTemplate = Plain()
    """How turns become text."""
    odd: Literal["refuse", "skip"] = "refuse"
    """What is done with an odd pair: an error; or it is left out, and counted by reason."""
    longest: int | None = None
    """Bytes that the longer of the two, as text with its prompt, may have; other pairs are left
    out, and counted. None: any number, and a pair that a row does not hold is an error."""

    def __post_init__(self):
        if not isinstance(self.template, ChatTemplate):
            raise ValueError(f"Pairs: no template: {self.template!r}; write ChatML(), say")
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"Pairs: longest must be at least 1, not {self.longest}")

    def documents(self) -> Documents:
        """The preferred answer of each pair and the rejected one, next to each other."""
        names: list[str] = []
        known: set[str] = set()
        made: list[Rendered] = []
        left_out: Counter[str] = Counter()
        for one in made_of_entries(self, "pair", self._pair, left_out):
            if self.longest is not None and max(len(p.text) for p in one.made) > self.longest:
                left_out[f"more than {self.longest} bytes"] += 1
                continue
            name = f"{one.file}/{one.given.get('id', one.number)}"
            names.append(name if name not in known else f"{name}/{one.number}")
            known.add(name)
            made += one.made
        total = len(names) + left_out.total()
        reasons = ", ".join(f"{count} with {kind}" for kind, count in left_out.most_common())
        if not names:
            why = f": all {total} are left out: {reasons}" if total else " in the files that match"
            raise ValueError(f"{self}: no pair{why}")
        note = f"{self}: {left_out.total()} of {plural(total, 'pair')} left out: {reasons}"
        return Documents(
            [f"{name}/{side}" for name in names for side in SIDES],
            lambda i: made[i].text,
            [name for name in names for _ in SIDES],
            lambda i: made[i].marks,
            (note,) if left_out else (),
            paired=True,
        )

    def _pair(self, entry: Any) -> list[Rendered]:
        """Raises OddError for what may be skipped, ValueError for another form."""
        try:
            pair = [rendered(self.template, turns) for turns in pair_of(entry)]
        except OddError:
            raise
        except ValueError as error:
            if not is_pair(entry):
                raise
            raise OddError("turns that the template has no form for", str(error)) from None
        if any(document.marks.scored == () for document in pair):
            raise OddError("no answer to train", "it has no answer to train")
        if pair[0].text == pair[1].text:
            raise OddError("equal answers", "the chosen answer and the rejected one are equal")
        return pair


def is_pair(entry: Any) -> bool:
    """Whether an entry has one of the FORMS."""
    if not isinstance(entry, dict) or any(name not in entry for name in SIDES):
        return False
    return "prompt" in entry or all(isinstance(entry[name], list) for name in SIDES)


def pair_of(entry: Any) -> tuple[list[Turn], list[Turn]]:
    """The turns of the preferred conversation and of the rejected one, trained where they differ.

    Raises ValueError where an entry has another form, and OddError where it is odd.
    """
    if not is_pair(entry):
        raise ValueError(f"no pair; expected {FORMS}")
    preferred, rejected = (_conversation(entry, name) for name in SIDES)
    same = [a[:2] == b[:2] for a, b in zip(preferred, rejected, strict=False)]
    shared = same.index(False) if False in same else len(same)
    if shared == len(preferred) == len(rejected):
        raise OddError("equal answers", "the chosen answer and the rejected one are equal")
    for name, turns in zip(SIDES, (preferred, rejected), strict=True):
        try:
            check_turns(turns)
        except OddError as error:
            raise OddError(error.kind, f"{name}: {error}") from None
        if len(turns) == shared or turns[shared].role != "assistant":
            raise OddError(
                "prompts that differ",
                f"the two part at turn {shared + 1}, which is no answer of the {name} one: an "
                "answer of each to the same prompt is compared",
            )
    return _from(preferred, shared), _from(rejected, shared)


def _from(turns: Sequence[Turn], first: int) -> list[Turn]:
    """The turns, of which those before the first are not trained."""
    return [t._replace(trained=t.trained and i >= first) for i, t in enumerate(turns)]


def _conversation(entry: dict[str, Any], name: str) -> list[Turn]:
    """The prompt and one of the answers."""
    turns = side(entry[name], "assistant")
    asked = side(entry["prompt"], "user") if "prompt" in entry else []
    if turns and turns[0].role == "assistant":
        turns = asked + turns
    elif any(turn not in turns for turn in asked):
        raise OddError(
            "prompts that differ", f"the {name} conversation does not have the prompt that is given"
        )
    system = entry.get("system")
    if isinstance(system, str) and system and not (turns and turns[0].role == "system"):
        turns.insert(0, Turn("system", system))
    return turns
