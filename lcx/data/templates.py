"""Chat templates: how the turns of a conversation become one text.

A template says how turns are written down; what is trained of them follows by rendering prefixes
(`lcx.data.rendering`). These are the published formats of five families, each as its models'
documentation gives it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class Turn(NamedTuple):
    """What one speaker says."""

    role: str
    """system, user, assistant, tool, or another name."""
    text: str
    trained: bool = True
    """Whether a model is trained to say it, where it is the assistant's."""


class Form(NamedTuple):
    """What a template writes beside what is said."""

    special: tuple[str, ...] = ()
    """Names of its special tokens. Where a tokenizer has them, they become its ids."""
    bos: str = ""
    """What it begins a text with, which is the document's own BOS; empty: nothing."""
    between: str = ""
    """What ends a turn only where another follows; empty: a turn has an end of its own."""


@runtime_checkable
class ChatTemplate(Protocol):
    """How turns are written down, as a spec."""

    def form(self) -> Form:
        """Its special tokens, and what stands between turns."""
        ...

    def stops(self) -> Sequence[str]:
        """What ends an answer: a model that writes one is to stop there."""
        ...

    def text(self, turns: Sequence[Turn], header: bool) -> str:
        """The conversation; with `header`, up to where the assistant begins to speak.

        Raises ValueError for a role, or an order of turns, that the template has no form for.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """Paragraphs that begin with USER: or ASSISTANT:, or with another speaker's name in capitals.

    No special tokens: for tokenizers that have none, and models that begin from nothing. An empty
    line ends an answer, which is trained where another turn follows.
    """

    def form(self) -> Form:
        return Form(between="\n\n")

    def stops(self) -> Sequence[str]:
        return ("\n\nUSER:",)

    def text(self, turns: Sequence[Turn], header: bool) -> str:
        said = [f"{turn.role.upper()}: {turn.text}" for turn in turns]
        return "\n\n".join([*said, "ASSISTANT:"] if header else said)


@dataclass(frozen=True)
class ChatML:
    """`<|im_start|>user`, a line break, what is said, `<|im_end|>`: as Qwen and others have it.

    OpenAI, "Chat Markup Language" (2023). Every role has the same form, and what is said stays as
    it is.
    """

    def form(self) -> Form:
        return Form(("<|im_start|>", "<|im_end|>"))

    def stops(self) -> Sequence[str]:
        return ("<|im_end|>",)

    def text(self, turns: Sequence[Turn], header: bool) -> str:
        said = (f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in turns)
        return "".join(said) + "<|im_start|>assistant\n" * header


@dataclass(frozen=True)
class Llama2Chat:
    """`[INST] ... [/INST]` and the answer, each such pair between `<s>` and `</s>`: Llama 2's chat.

    Touvron et al. 2023 (arXiv:2307.09288), and Meta's `generation.py`. A system prompt stands
    between `<<SYS>>` and `<</SYS>>` in the first question. White space around what is said is
    dropped. Users and the assistant take turns; nobody else speaks.
    """

    def form(self) -> Form:
        return Form(("<s>", "</s>"), bos="<s>")

    def stops(self) -> Sequence[str]:
        return ("</s>",)

    def text(self, turns: Sequence[Turn], header: bool) -> str:
        system, turns = _system(turns)
        _check_pairs(self, turns)
        if not turns and (system or header):
            raise ValueError("Llama2Chat has no form for a conversation without a question")
        said = []
        for number, turn in enumerate(turns):
            if turn.role == "assistant":
                said.append(f" {turn.text.strip()} </s>")
                continue
            before = "" if number or system is None else f"<<SYS>>\n{system}\n<</SYS>>\n\n"
            said.append(f"<s>[INST] {(before + turn.text).strip()} [/INST]")
        return "".join(said)  # where the question ends the assistant begins


@dataclass(frozen=True)
class Llama3Chat:
    """`<|start_header_id|>user<|end_header_id|>`, what is said, `<|eot_id|>`: Llama 3's chat.

    Meta, "Model Cards and Prompt formats: Llama 3" (2024). White space around what is said is
    dropped. Llama 3.1 and later write a date into the system prompt: for these take `Jinja`.
    """

    def form(self) -> Form:
        return Form(
            ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            bos="<|begin_of_text|>",
        )

    def stops(self) -> Sequence[str]:
        return ("<|eot_id|>", "<|end_of_text|>")

    def text(self, turns: Sequence[Turn], header: bool) -> str:
        said = (f"{self._header(turn.role)}{turn.text.strip()}<|eot_id|>" for turn in turns)
        return "<|begin_of_text|>" + "".join(said) + self._header("assistant") * header

    def _header(self, role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


@dataclass(frozen=True)
class Vicuna:
    """`USER: ... ASSISTANT: ...</s>` in one line, after a system prompt: Vicuna 1.1 and LongChat.

    FastChat's `vicuna_v1.1` (Zheng et al. 2023, arXiv:2306.05685). Users and the assistant take
    turns; nobody else speaks.
    """

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )
    """Of a conversation that has no system prompt of its own."""

    def form(self) -> Form:
        return Form(("</s>",))

    def stops(self) -> Sequence[str]:
        return ("</s>",)

    def text(self, turns: Sequence[Turn], header: bool) -> str:
        system, turns = _system(turns)
        _check_pairs(self, turns)
        said = [f"{self.system if system is None else system} "]
        for turn in turns:
            answer = turn.role == "assistant"
            said.append(f"ASSISTANT: {turn.text}</s>" if answer else f"USER: {turn.text} ")
        return "".join(said) + "ASSISTANT:" * header


def _system(turns: Sequence[Turn]) -> tuple[str | None, Sequence[Turn]]:
    """The system prompt, if the first turn is one, and the others."""
    if turns and turns[0].role == "system":
        return turns[0].text, turns[1:]
    return None, turns


def _check_pairs(template: object, turns: Sequence[Turn]) -> None:
    for number, turn in enumerate(turns):
        wanted = "assistant" if number % 2 else "user"
        if turn.role != wanted:
            raise ValueError(
                f"{type(template).__name__} has no form for a turn of {turn.role!r} where one of "
                f"{wanted!r} is due"
            )
