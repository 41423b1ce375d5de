"""Conversations as documents: ShareGPT's JSON, and messages as OpenAI has them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lcx.data.documents import Documents
from lcx.data.sources import TextFiles
from lcx.paths import GlobPath


@dataclass(frozen=True)
class Conversations:
    """Conversations as ShareGPT has them, or as OpenAI's `messages`: each is a document.

    Files of JSON, each a list of conversations; or of JSON Lines, with one in each line. One is
    {"id": ..., "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}, ...]} or
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]}. A turn
    becomes a paragraph that begins with USER: or ASSISTANT: (Vicuna's words), or with its speaker's
    name in capitals. What is said is a text, null for none, or a list of texts and of parts
    {"type": "text", "text": "..."}, which are joined as they are.

    ShareGPT's ids "abc_0", "abc_7" are of pieces of one conversation, which stay in one split.
    Raises FileNotFoundError when no file matches, and ValueError, with the file and the line or the
    entry, for what has another form, or has more than text in it: an image, a call of a tool.
    """

    glob: GlobPath

    def documents(self) -> Documents:
        names, groups, texts, known = [], [], [], set()
        for file in TextFiles(self.glob).documents():
            for number, (place, entry) in enumerate(self._entries(file.name, file.text)):
                try:
                    text = _conversation(entry)
                except ValueError as error:
                    raise ValueError(f"{self}: {file.name}, {place}: {error}") from None
                at = entry.get("id")
                name = f"{file.name}/{number if at is None else at}"
                names.append(name if name not in known else f"{name}/{number}")
                known.add(name)
                pieces = "conversations" in entry and isinstance(at, str)
                groups.append(re.sub(r"_\d+$", "", name) if pieces else name)
                texts.append(text.encode(errors="surrogatepass"))  # of half an emoji
        if not names:
            raise ValueError(f"{self}: no conversation in the files that match")
        return Documents(names, lambda i: texts[i], groups)

    def _entries(self, name: str, data: bytes) -> Iterator[tuple[str, Any]]:
        """The entries of a file, each with where it stands."""
        encoding = json.detect_encoding(data)
        try:
            text = data.decode(encoding, "surrogatepass")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ValueError(f"{self}: {name}, line {line}: not {encoding}: {error}") from None
        if text.lstrip().startswith("["):
            for number, entry in enumerate(self._json(name, text, 1), 1):
                yield f"entry {number}", entry
            return
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", self._json(name, line, number)

    def _json(self, name: str, text: str, first_line: int) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            line = first_line + error.lineno - 1
            raise ValueError(
                f"{self}: {name}, line {line}: no JSON: {error.msg} (column {error.colno}). "
                "Expected is a list of conversations, or one conversation in each line"
            ) from None


FORMS = (
    '{"conversations": [{"from": "human", "value": "..."}, ...]} or '
    '{"messages": [{"role": "user", "content": "..."}, ...]}'
)
SPEAKERS = {"human": "USER", "user": "USER", "gpt": "ASSISTANT", "assistant": "ASSISTANT"}
TEXTS = ("text", "input_text", "output_text")
CALLS = ("tool_calls", "function_call")


def _conversation(entry: Any) -> str:
    """Its text. Raises ValueError where it has another form, or says more than text."""
    turns = None
    if isinstance(entry, dict):
        turns = entry.get("conversations", entry.get("messages"))
    if not isinstance(turns, list):
        raise ValueError(f"no conversation: {_short(entry)}; expected {FORMS}")
    return "\n\n".join(_turn(turn, number) for number, turn in enumerate(turns, 1))


def _turn(turn: Any, number: int) -> str:
    if not isinstance(turn, dict):
        raise ValueError(f"turn {number} has another form: {_short(turn)}; expected {FORMS}")
    for call in CALLS:
        if turn.get(call):
            raise ValueError(f"turn {number} has {call!r}, which is no text; leave the entry out")
    who, what = ("from", "value") if "from" in turn else ("role", "content")
    if not isinstance(turn.get(who), str) or what not in turn:
        raise ValueError(f"turn {number} has another form: {_short(turn)}; expected {FORMS}")
    said = turn[what]
    parts = said if isinstance(said, list) else [said or ""]
    texts = [_text(part, number) for part in parts]
    return f"{SPEAKERS.get(turn[who], turn[who].upper())}: {''.join(texts)}"


def _text(part: Any, number: int) -> str:
    """A part of what is said, a string or {"type": "text", "text": "..."}."""
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    text = part.get("text") if isinstance(part, dict) else part
    if kind not in TEXTS or not isinstance(text, str):
        raise ValueError(f"turn {number} says what is no text: {_short(part)}; leave the entry out")
    return text


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
