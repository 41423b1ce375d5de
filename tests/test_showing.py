"""`lcx data`: what a variant is trained on, with what of it is scored."""

import json
from pathlib import Path

import pytest

from lcx.command.cli import data_command

CHAT = {
    "messages": [
        {"role": "user", "content": "Hello?\x1b[31m"},
        {"role": "assistant", "content": "Yes."},
    ]
}
FILE = """
from lcx import *

def experiments():
    chats = Conversations("chats.jsonl", template=Llama2Chat(), odd="skip")
    chat = Experiment(data=Data(chats, validation=0.0, test=0.0), train=Train(length=64))
    text = Data(TextFiles("chats.jsonl"), validation=0.0, test=0.0)
    recall = Experiment(data=MQAR(pairs=(2,), vocab=64), train=Train(length=16))
    return {"chat": chat, "again": chat, "text": Experiment(data=text), "recall": recall}
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LCX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    odd = {"messages": CHAT["messages"][1:]}
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, [CHAT, odd, CHAT])))
    (tmp_path / "file.py").write_text(FILE)
    return tmp_path / "file.py"


def test_answers_stand_in_brackets(file: Path, capsys: pytest.CaptureFixture):
    data_command(file, show=2, only="chat,again")
    said = capsys.readouterr().out
    assert said.startswith("chat, again: Conversations(")
    assert "1 of 3 conversations left out: 1 with an assistant first\n" in said
    # a control character is shown, not obeyed
    shown = "<s>[INST] Hello?\\x1b[31m [/INST]\u27e6 Yes. </s>\u27e7\n"
    assert said.count(shown) == 2
    assert "1. tokens 0 to 36 of a document, 28% scored" in said
    assert "2 pieces of 64 tokens at most: 72 targets, 28% scored\n" in said
    assert said.endswith("training split: 2 documents, 72 targets, 28% scored\n")


def test_colours_in_a_terminal(
    file: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    data_command(file, show=1, only="chat")
    said = capsys.readouterr().out
    assert "\x1b[32m Yes. </s>\x1b[0m" in said
    assert "\x1b[2;7m<s>\x1b[0m" in said
    assert "\u27e6" not in said
    monkeypatch.setenv("NO_COLOR", "1")
    data_command(file, show=1, only="chat")
    assert "\u27e6 Yes. </s>\u27e7" in capsys.readouterr().out


def test_any_data_can_be_shown(file: Path, capsys: pytest.CaptureFixture):
    data_command(file, show=1, only="text", assignments=("train.length=20",))
    said = capsys.readouterr().out
    assert " of a document, 100% scored\n" in said
    assert "1 piece of 20 tokens at most: 20 targets, 100% scored" in said
    data_command(file, show=3, only="recall")
    said = capsys.readouterr().out
    assert "recall: MQAR(vocab=64), symbols\n" in said
    assert "1. tokens 0 to 8 of a document, 25% scored\n 64" in said
    assert "training split" not in said


def test_wrong_input_is_a_clear_line(file: Path):
    for arguments, message in (
        ({"show": 0}, "--show must be at least 1, not 0"),
        ({"only": "chatt"}, "no variant 'chatt'; did you mean 'chat'"),
        ({"only": "chat", "assignments": ("data.source.odd=drop",)}, "expected"),
    ):
        with pytest.raises(ValueError, match=message):
            data_command(file, **arguments)
