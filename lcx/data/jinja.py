"""A published model's own chat template, in Jinja."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lcx.data.templates import Form, Turn
from lcx.paths import FilePath

PROBE = (Turn("user", "?"), Turn("assistant", "!"))
"""What is rendered to see how an answer ends."""


@dataclass(frozen=True)
class Jinja:
    """The chat template of a published model's folder, rendered as transformers renders it.

    chat_template.jinja, or what tokenizer_config.json has under `chat_template` (the one named
    "default" of several). A template is a program of somebody else's: it runs in Jinja's sandbox,
    and sees `messages`, `add_generation_prompt`, the special tokens by name (`bos_token`,
    `eos_token`), `tools` and `documents` (None), `raise_exception`, `strftime_now` and the filter
    `tojson`. Its special tokens are those that tokenizer_config.json and tokenizer.json call so.

    What is trained is found by rendering a conversation turn by turn. Raises FileNotFoundError
    where there is no template, ValueError where a file is no JSON or the template is wrong.
    """

    folder: FilePath
    today: str | None = None
    """2024-07-26, say: the date that `strftime_now` tells. None: the day on which the texts are
    loaded, so that a template which writes it gives other texts every day."""

    def __post_init__(self):
        if self.today is not None:
            try:
                datetime.fromisoformat(self.today)
            except ValueError:
                raise ValueError(
                    f"Jinja: today must be a date such as '2024-07-26', not {self.today!r}"
                ) from None

    def form(self) -> Form:
        return Form(self._files.special, self._files.names.get("bos_token", ""))

    def stops(self) -> Sequence[str]:
        """What the template puts after an answer, and the model's `eos_token`."""
        before, whole = self.text(PROBE[:1], header=True), self.text(PROBE, header=False)
        end = whole[len(before) :].partition(PROBE[1].text)[2]
        names = (name for name in self._files.special if name in end)
        first = min(names, key=end.find, default=end.rstrip())
        return tuple(dict.fromkeys(filter(None, (first, self._files.names.get("eos_token", "")))))

    def text(self, turns: Sequence[Turn], header: bool) -> str:
        from jinja2 import TemplateError

        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        known = {"tools": None, "documents": None, **self._files.names}
        try:
            return self._files.render(messages=messages, add_generation_prompt=header, **known)
        except (TemplateError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"the template of {self.folder}: {error}") from None

    @property
    def _files(self) -> "_Files":
        return _read(self.folder, self.today)


class _Files(NamedTuple):
    """What a folder says of conversations."""

    render: Callable[..., str]
    names: dict[str, str]
    """Special tokens by what they are for: bos_token, eos_token and others."""
    special: tuple[str, ...]


@lru_cache(maxsize=8)
def _read(folder: str, today: str | None) -> _Files:
    where = Path(folder).expanduser()
    config, model = (_json(where / name) for name in ("tokenizer_config.json", "tokenizer.json"))
    names = {
        key: _content(value)
        for key, value in config.items()
        if key.endswith("_token") and _content(value)
    }
    added = [*config.get("added_tokens_decoder", {}).values(), *model.get("added_tokens", [])]
    special = [token["content"] for token in added if token.get("special")]
    source = config.get("chat_template")
    if (file := where / "chat_template.jinja").is_file():
        source = file.read_text("utf-8")
    if isinstance(source, list):
        source = {part["name"]: part["template"] for part in source}.get("default")
    if not isinstance(source, str):
        raise FileNotFoundError(
            f"Jinja({folder!r}): no chat template: there is no chat_template.jinja, and "
            "tokenizer_config.json has none under 'chat_template'; a base model has none: take "
            "ChatML(), say"
        )
    return _Files(_compiled(source, folder, today), names, tuple({*special, *names.values()}))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: an object is expected")
    return found


def _content(token: Any) -> str:
    """A token is written as its name, or with its properties."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _compiled(source: str, folder: str, today: str | None) -> Callable[..., str]:
    from jinja2 import TemplateError, TemplateSyntaxError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}, which some templates put around answers."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Names(Namespace):
        """A namespace without names that reach into Python."""

        def __init__(*args: Any, **named: Any):
            Namespace.__init__(args[0])
            for name, value in dict(*args[1:], **named).items():
                args[0][name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a template cannot set {name!r}")
            super().__setitem__(name, value)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return (datetime.fromisoformat(today) if today else datetime.now()).strftime(form)

    sandbox: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    sandbox.filters["tojson"] = tojson
    sandbox.globals.update(
        {
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
            "namespace": Names,
            "dict": lambda *pairs, **named: dict(*pairs, **named),  # not the class itself
        }
    )
    try:
        return sandbox.from_string(source).render
    except TemplateSyntaxError as error:
        raise ValueError(f"Jinja({folder!r}): line {error.lineno}: {error.message}") from None
