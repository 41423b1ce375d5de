"""The forms in which conversations are published, and what is odd about some of them."""

import json
from collections.abc import Sequence
from typing import Any

from lcx.data.templates import Turn

FORMS = (
    '{"conversations": [{"from": "human", "value": "..."}, ...]}, '
    '{"messages": [{"role": "user", "content": "..."}, ...]}, '
    '{"instruction": "...", "input": "...", "output": "..."} or '
    '{"prompt": "...", "completion": "..."}'
)
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
"""What speakers are called, and who that is."""
TEXTS = ("text", "input_text", "output_text")
CALLS = ("tool_calls", "function_call")


class OddError(ValueError):
    """A conversation that is not as conversations are; one of the kind that may be skipped."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def turns_of(entry: Any) -> list[Turn]:
    """The turns of an entry, in any of the FORMS.

    Raises ValueError where it has another form, and OddError where it says more than text.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"no conversation: {_short(entry)}; expected {FORMS}")
    turns = entry.get("conversations", entry.get("messages"))
    if isinstance(turns, list):
        found = [_turn(turn, number) for number, turn in enumerate(turns, 1)]
    elif "instruction" in entry and "output" in entry:
        asked = [_said(entry.get(name), name) for name in ("instruction", "input")]
        asked = "\n\n".join(filter(None, asked))
        found = [Turn("user", asked), Turn("assistant", _said(entry["output"], "output"))]
    elif "prompt" in entry and "completion" in entry:
        found = side(entry["prompt"], "user") + side(entry["completion"], "assistant")
    else:
        raise ValueError(f"no conversation: {_short(entry)}; expected {FORMS}")
    system = entry.get("system")
    if isinstance(system, str) and system and not (found and found[0].role == "system"):
        found.insert(0, Turn("system", system))
    return found


def check_turns(turns: Sequence[Turn]) -> None:
    """Raise OddError where a conversation is odd, with the number of the turn.

    A conversation is a system prompt or none, and then a user and the assistant in turns; tools
    answer the assistant, one or several.
    """
    before = None
    for number, turn in enumerate(turns, 1):
        role = turn.role
        if role not in ROLES.values():
            known = ", ".join(ROLES)
            raise OddError("an unknown role", f"turn {number}: no role {role!r}; known: {known}")
        if role == "assistant" and not turn.text.strip():
            raise OddError("an empty answer", f"turn {number} is an empty answer")
        if role == "assistant" and before in (None, "system"):
            raise OddError("an assistant first", f"turn {number}: the assistant speaks first")
        if role == before and role != "tool":
            raise OddError(
                "two turns of one role in a row", f"turns {number - 1} and {number} are both {role}"
            )
        if (role == "system" and number > 1) or (
            role == "tool" and before not in ("assistant", "tool")
        ):
            raise OddError(
                f"a {role} turn out of place", f"turn {number}: a {role} turn after {before}"
            )
        before = role
    if not any(turn.role == "assistant" for turn in turns):
        raise OddError("no answer", "it has no answer")


def side(said: Any, role: str) -> list[Turn]:
    """A prompt or a completion: a text, or messages."""
    if isinstance(said, list) and all(isinstance(part, dict) and "role" in part for part in said):
        return [_turn(turn, number) for number, turn in enumerate(said, 1)]
    return [Turn(role, _said(said, "prompt" if role == "user" else "completion"))]


def _turn(turn: Any, number: int) -> Turn:
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number} has another form: {_short(turn)}; expected {FORMS}")
    for call in CALLS:
        if turn.get(call):
            raise OddError(
                f"{call}, which is no text",
                f"turn {number} has {call!r}, which is no text; leave the entry out",
            )
    who, what = ("from", "value") if "from" in turn else ("role", "content")
    if not isinstance(turn.get(who), str) or what not in turn:
        raise ValueError(f"turn {number} has another form: {_short(turn)}; expected {FORMS}")
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise ValueError(f"turn {number} has the weight {weight!r}; 0 and 1 are known")
    role = ROLES.get(turn[who].lower(), turn[who])
    return Turn(role, _said(turn[what], f"turn {number}"), weight != 0)


def _said(said: Any, where: str) -> str:
    """What is said: a text, null for none, or texts and parts, joined as they are."""
    parts = said if isinstance(said, list) else [said or ""]
    return "".join(_text(part, where) for part in parts)


def _text(part: Any, where: str) -> str:
    """A part of what is said, a string or {"type": "text", "text": "..."}."""
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    text = part.get("text") if isinstance(part, dict) else part
    if kind not in TEXTS or not isinstance(text, str):
        raise OddError(
            "more than text", f"{where} says what is no text: {_short(part)}; leave the entry out"
        )
    return text


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
