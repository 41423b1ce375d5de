"""Chat: what the model is given to read, turn by turn, and where its answers end."""

import io
import json

import numpy as np
import pytest

from lcx.command import chatting
from lcx.command.writing import Writer
from lcx.data.documents import Documents
from lcx.data.tokenizers import Bytes
from lcx.generate import Generator
from lcx.generate.written import Written
from tests.test_generate import MODEL, lcx

TOKENIZER = Bytes().load(Documents([], lambda i: b""))


@pytest.fixture
def reads(monkeypatch):
    """What a model that always answers "yes." is given to read, and to stop at."""
    found = {"prompts": []}

    class Answers(Generator):
        def __init__(self, model, params, decoding, stop, stop_strings, tokenizer):
            found["stops"] = stop_strings

        def stream(self, prompts, new, seed):
            (ids,) = prompts
            found["prompts"].append(TOKENIZER.decode(ids[1:]).decode())
            assert ids[0] == TOKENIZER.bos
            yield [Written(np.array([*b" yes"], np.int32), False)]
            yield [Written(np.array([*b"."], np.int32), True)]

    writer = Writer(MODEL, None, TOKENIZER, 40, (TOKENIZER.bos,))
    monkeypatch.setattr(chatting, "open_writer", lambda folder: writer)
    monkeypatch.setattr(chatting, "Generator", Answers)
    return found


def test_each_question_is_asked_with_all_that_was_said(reads, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("one?\n\ntwo?\n"))
    asked = ("generate", "folder", "--chat", "--template", "Plain()", "--system", "Be kind.")
    assert lcx(*asked, "--max-new", "20") == 0
    said = capsys.readouterr()
    assert said.out == "yes.\nyes.\n"
    first = "SYSTEM: Be kind.\n\nUSER: one?\n\nASSISTANT:"
    assert reads["prompts"] == [first, f"{first} yes.\n\nUSER: two?\n\nASSISTANT:"]
    assert reads["stops"] == ("\n\nUSER:",)
    assert "trained on 40" in said.err


def test_one_question_of_the_command_is_the_only_one(reads, capsys):
    asked = ("generate", "folder", "--chat", "--template", "ChatML()", "--prompt", "one?")
    assert lcx(*asked) == 0
    assert capsys.readouterr().out == "yes.\n"
    (prompt,) = reads["prompts"]
    assert prompt == "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n"
    assert reads["stops"] == ("<|im_end|>",)


def test_a_run_s_template_is_that_of_its_conversations(reads, tmp_path, texts, monkeypatch, capsys):
    user = {"role": "user", "content": "a?"}
    answers = (file.read_text(errors="replace")[:200] for file in sorted(texts.iterdir()))
    said = ({"role": "assistant", "content": text} for text in answers)
    (tmp_path / "talk.json").write_text(json.dumps([{"messages": [user, one]} for one in said]))
    monkeypatch.setenv("TINY_TEXTS", f"{texts}/*.txt")
    source = f"Conversations({str(tmp_path / 'talk.json')!r}, template=ChatML())"
    trained = ("--only", "softmax", "--set", f"data.source={source}", "--set", "train.steps=1")
    file = __file__.replace("test_chat", "tiny")
    monkeypatch.chdir(tmp_path)
    evaluation = ("--set", "evaluation=ByPosition((128,))")
    assert lcx("train", file, "--out", "out", *trained, *evaluation) == 0
    capsys.readouterr()
    assert lcx("generate", "out/softmax", "--chat", "--prompt", "one?") == 0
    assert reads["prompts"][0].startswith("<|im_start|>user\none?<|im_end|>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat", "--json"], "--chat: without --json"),
        (["--chat", "--prompt", "", "--template", "Plain()"], "--prompt is empty"),
        (["--chat", "--template", "Plian()"], "did you mean 'Plain'?"),
        (["--prompt", "a", "--system", "b"], "--template and --system are for --chat"),
        ([], "--prompt: give the beginning of a text, or ask for --chat"),
    ],
)
def test_what_cannot_be_is_refused_by_a_line(reads, arguments, message, capsys):
    assert lcx("generate", "folder", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
