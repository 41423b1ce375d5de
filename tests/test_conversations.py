"""`Conversations`: ShareGPT, OpenAI's messages, Alpaca and pairs; whole files and JSON Lines."""

import json
from pathlib import Path

import pytest

from lcx.data import Conversations, Llama2Chat

TURNS = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}]
MESSAGES = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
TEXT = b"USER: Hello?\n\nASSISTANT: Yes."


def read(path: Path, content: str | bytes, **settings):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Conversations(str(path), **settings).documents()


def test_conversations_are_documents_of_turns(tmp_path: Path):
    other = [{"from": "system", "value": "Be brief."}, *TURNS]
    chats = [{"id": "a", "conversations": TURNS}, {"conversations": other}]
    documents = read(tmp_path / "chats.json", json.dumps(chats))
    assert documents.names == ["chats.json/a", "chats.json/1"]
    assert documents[0].text == TEXT
    assert documents[1].text == b"SYSTEM: Be brief.\n\nUSER: Hello?\n\nASSISTANT: Yes."


@pytest.mark.parametrize("form", ["list", "lines", "marked", "utf-16"])
def test_messages_are_read_from_lists_and_from_lines(tmp_path: Path, form: str):
    entries = [{"messages": MESSAGES}, {"id": "b", "messages": MESSAGES, "tools": []}]
    lines = "\r\n\n".join(map(json.dumps, entries)) + "\n"
    content = {
        "list": json.dumps(entries, indent=1).encode(),
        "lines": lines.encode(),
        "marked": b"\xef\xbb\xbf" + lines.encode(),
        "utf-16": lines.encode("utf-16"),
    }[form]
    documents = read(tmp_path / "chats.jsonl", content)
    assert documents.names == ["chats.jsonl/0", "chats.jsonl/b"]
    assert [d.text for d in documents] == [TEXT, TEXT]


def test_parts_of_text_are_joined(tmp_path: Path):
    said = [{"type": "text", "text": "Hel"}, "lo", {"type": "input_text", "text": "?"}]
    for turns in (
        {"messages": [{"role": "user", "content": said}, MESSAGES[1]]},
        {"conversations": [{"from": "human", "value": said}, TURNS[1]]},
        {"conversations": [{"role": "user", "content": said}, TURNS[1]]},
    ):
        assert read(tmp_path / "a.json", json.dumps([turns]))[0].text == TEXT
    nothing = [{"role": "system", "content": None}, {"role": "user", "content": []}]
    as_it_is = {"scored": "everything", "odd": "keep"}
    found = read(tmp_path / "a.json", json.dumps({"messages": nothing}), **as_it_is)
    assert found[0].text == b"SYSTEM: \n\nUSER: "


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            "image_url.*leave",
        ),
        ({"role": "user", "content": [{"type": "image", "text": "x"}]}, "says what is no text"),
        ({"from": "human", "value": [["a"]]}, r'no text: \["a"\]; leave the entry out'),
        ({"from": "human", "value": 3}, "says what is no text: 3"),
        ({"role": "assistant", "tool_calls": [{}]}, "has 'tool_calls', which is no text"),
        ({"role": "user"}, 'another form: {"role": "user"}; expected .*"messages"'),
        ({"content": "x"}, "another form"),
        ("x", 'turn 2 has another form: "x"'),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path: Path, turn, message):
    entries = [{"messages": MESSAGES}, {"messages": [MESSAGES[0], turn]}]
    lines = "\n" + "\n".join(map(json.dumps, entries))
    for content, place in ((json.dumps(entries), "entry 2"), (lines, "line 3")):
        with pytest.raises(ValueError, match=rf"a\.json, {place}: .*{message}"):
            read(tmp_path / "a.json", content)


def test_a_file_of_another_form_is_named_with_the_line(tmp_path: Path):
    line = json.dumps({"messages": MESSAGES}).encode()
    for wrong, message in (
        (b"[1]", "entry 1: no conversation: 1; expected"),
        (b'{"a": 1}', 'line 1: no conversation: {"a": 1}; expected'),
        (b'[{"turns": []}]', "entry 1: no conversation"),
        (b"not JSON", r"line 1: no JSON: Expecting value \(column 1\)"),
        (line + b"\n" + line[:-1] + b"\n" + line, r"line 2: no JSON: Expecting ',' delimiter"),
        (b'[\n{"messages": [\n}]', "line 3: no JSON"),
        (line + b'\n{"messages": "\xff"}', "line 2: not utf-8: .* byte 0xff"),
        (b"[]", "no conversation in the files that match"),
        (b"\n", "no conversation in the files"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read(tmp_path / "chats.json", wrong)
        assert "chats.json" in str(error.value)


def test_pieces_of_one_conversation_stay_together(tmp_path: Path):
    """ShareGPT's ids tell; ids of messages are only names, and null is none."""
    shared = [{"id": at, "conversations": TURNS} for at in ("a_0", "a_1", "b_0", "b_0", None, 7)]
    documents = read(tmp_path / "s.json", json.dumps(shared))
    assert documents.groups == [f"s.json/{at}" for at in ("a", "a", "b", "b", 4, 7)]
    assert len(set(documents.names)) == 6
    messages = [{"id": f"request_{n}", "messages": MESSAGES} for n in range(3)]
    assert len(set(read(tmp_path / "m.json", json.dumps(messages)).groups)) == 3


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "USER: Add.\n\n1 2"),
        ({"instruction": "Add.", "input": "", "output": "3"}, "USER: Add."),
        ({"instruction": "Add.", "output": "3", "system": "S"}, "SYSTEM: S\n\nUSER: Add."),
        ({"prompt": "Add.", "completion": "3"}, "USER: Add."),
        (
            {
                "prompt": [
                    {"role": "developer", "content": "S"},
                    {"role": "human", "content": "A"},
                ],
                "completion": [{"role": "model", "content": "3"}],
            },
            "SYSTEM: S\n\nUSER: A",
        ),
        (
            {"system": "S", "conversations": [{"from": "prompter", "value": "A"}, TURNS[1]]},
            "SYSTEM: S\n\nUSER: A",
        ),
        (
            {
                "messages": [
                    {"role": "User", "content": "A"},
                    {"role": "bot", "content": "B"},
                    {"role": "function", "content": "C"},
                    {"role": "observation", "content": "D"},
                    {"role": "chatgpt", "content": "3"},
                ]
            },
            "USER: A\n\nASSISTANT: B\n\nTOOL: C\n\nTOOL: D",
        ),
    ],
)
def test_forms_and_names_of_speakers(tmp_path: Path, entry: dict, text: str):
    answer = "Yes." if "conversations" in entry else "3"
    (document,) = read(tmp_path / "a.jsonl", json.dumps(entry))
    assert document.text.decode() == f"{text}\n\nASSISTANT: {answer}"


def said(*pairs: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


ODD = {
    "two turns of one role in a row": said(("user", "a"), ("user", "b"), ("assistant", "c")),
    "an assistant first": said(("system", "s"), ("assistant", "c")),
    "an empty answer": said(("user", "a"), ("assistant", " \n")),
    "an unknown role": said(("user", "a"), ("narrator", "b")),
    "no answer": said(("system", "s"), ("user", "a")),
    "a system turn out of place": said(("user", "a"), ("system", "s"), ("assistant", "c")),
    "a tool turn out of place": said(("user", "a"), ("tool", "s"), ("assistant", "c")),
    "more than text": said(("user", [{"type": "image_url"}]), ("assistant", "c")),
}


def test_odd_conversations_are_refused_or_counted(tmp_path: Path):
    good = {"messages": MESSAGES}
    for kind, entry in ODD.items():
        with pytest.raises(ValueError, match=r"a\.json, entry 2: .*; odd='skip' leaves") as error:
            read(tmp_path / "a.json", json.dumps([good, entry]))
        assert error.type is ValueError
        with pytest.raises(ValueError, match=f"no conversation: all 1 are odd: 1 with {kind}"):
            read(tmp_path / "a.json", json.dumps([entry]), odd="skip")
    entries = [good, *ODD.values(), ODD["no answer"]]
    documents = read(tmp_path / "a.json", json.dumps(entries), odd="skip")
    assert [d.text for d in documents] == [TEXT]
    (note,) = documents.notes
    assert "9 of 10 conversations left out: 2 with no answer, 1 with two turns of one role" in note
    assert documents.select([0]).notes == documents.notes
    assert read(tmp_path / "a.json", json.dumps([good]), odd="skip").notes == ()


def test_odd_conversations_can_be_kept_if_there_is_something_to_train(tmp_path: Path):
    kept = [ODD[kind] for kind in ("two turns of one role in a row", "an assistant first")]
    documents = read(tmp_path / "a.json", json.dumps(kept), odd="keep")
    assert documents[0].text == b"USER: a\n\nUSER: b\n\nASSISTANT: c"
    first, last = documents.marks(0).scored[0]
    assert documents[0].text[first:last] == b" c"
    nothing = json.dumps([ODD["no answer"]])
    with pytest.raises(ValueError, match="entry 1: it has no answer to train"):
        read(tmp_path / "a.json", nothing, odd="keep")
    assert len(read(tmp_path / "a.json", nothing, odd="keep", scored="everything")) == 1
    weightless = {"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}]}
    with pytest.raises(ValueError, match="entry 1: it has no answer to train"):
        read(tmp_path / "a.json", json.dumps([weightless]))
    with pytest.raises(ValueError, match=r"Llama2Chat has no form for a turn of 'user' where one"):
        read(tmp_path / "a.json", json.dumps([kept[0]]), odd="keep", template=Llama2Chat())
