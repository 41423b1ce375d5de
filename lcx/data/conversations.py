"""Conversations as documents, of which the answers are trained."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from lcx.data.documents import Documents, Marks
from lcx.data.entries import made_of_entries
from lcx.data.rendering import Rendered, rendered
from lcx.data.templates import ChatTemplate, Plain
from lcx.data.turns import OddError, check_turns, turns_of
from lcx.paths import GlobPath
from lcx.wording import plural


@dataclass(frozen=True)
class Conversations:
    """Conversations in any of the usual forms, of which the answers are trained: each a document.

    Files of JSON, each a list of conversations; or of JSON Lines, with one in each line. One is,
    as ShareGPT, OpenAI and Alpaca have them,

        {"id": ..., "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}, ...]}
        {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]}
        {"instruction": "...", "input": "...", "output": "..."}
        {"prompt": "...", "completion": "..."}, each of them a text or messages

    and may have a "system" prompt beside. Roles go by their usual names: human, user, prompter;
    gpt, assistant, model, bot, chatgpt; system, developer; tool, function. What is said is a text,
    null for none, or a list of texts and of parts {"type": "text", "text": "..."}, which are joined
    as they are. An answer with "weight": 0 is not trained. ShareGPT's ids "abc_0", "abc_7" are of
    pieces of one conversation, which stay in one split.

    A token is scored, in training and in evaluation, if it begins in an answer or in what ends it.

    Odd is a conversation with two turns of one role in a row, with the assistant first, an empty
    answer, an unknown role, no answer to train; one that the template has no form for; one with
    more than text in it, an image or a call of a tool. Raises FileNotFoundError when no file
    matches, and ValueError, with the file and the line or the entry, for what is odd or has another
    form.
    """

    glob: GlobPath
    template: ChatTemplate = Plain()
    """How turns become text."""
    scored: Literal["answers", "everything"] = "answers"
    """What is trained and evaluated: what the assistant says, or every token."""
    odd: Literal["refuse", "skip", "keep"] = "refuse"
    """What is done with an odd conversation: an error; or it is left out, and counted by reason; or
    its turns are taken as they are, if there is anything to train and the template has a form."""

    def __post_init__(self):
        if not isinstance(self.template, ChatTemplate):
            raise ValueError(f"Conversations: no template: {self.template!r}; write ChatML(), say")

    def documents(self) -> Documents:
        names, groups, made, known = [], [], [], set()
        left_out: Counter[str] = Counter()
        for one in made_of_entries(self, "conversation", self._document, left_out):
            at = one.given.get("id")
            name = f"{one.file}/{one.number if at is None else at}"
            names.append(name if name not in known else f"{name}/{one.number}")
            known.add(name)
            pieces = "conversations" in one.given and isinstance(at, str)
            groups.append(re.sub(r"_\d+$", "", name) if pieces else name)
            made.append(one.made)
        total = len(names) + left_out.total()
        reasons = ", ".join(f"{count} with {kind}" for kind, count in left_out.most_common())
        if not names:
            why = f": all {total} are odd: {reasons}" if total else " in the files that match"
            raise ValueError(f"{self}: no conversation{why}")
        note = f"{self}: {left_out.total()} of {plural(total, 'conversation')} left out: {reasons}"
        plain = all(document.marks == Marks() for document in made)
        return Documents(
            names,
            lambda i: made[i].text,
            groups,
            None if plain else lambda i: made[i].marks,
            (note,) if left_out else (),
        )

    def _document(self, entry: Any) -> Rendered:
        """Raises OddError for what may be skipped, ValueError for another form."""
        turns, everything = turns_of(entry), self.scored == "everything"
        if self.odd != "keep":
            check_turns(turns)
        try:
            document = rendered(self.template, turns, everything)
        except ValueError as error:
            raise OddError("turns that the template has no form for", str(error)) from None
        if document.marks.scored == ():
            raise OddError("no answer to train", "it has no answer to train")
        return document
