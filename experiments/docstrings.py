"""Questions about the functions of the Python standard library, answered by their docstrings.

    python experiments/docstrings.py talk.jsonl pairs.jsonl

writes conversations of three questions each, one a line, as ShareGPT has them: "What does
shutil.copyfile(src, dst) do?", answered by the first paragraph of its docstring. The questions of
one conversation are about functions of one module; modules with fewer than three have none. All of
a module are pieces of one, by their ids, and lie in one split. And pairs of answers: the first
question of each conversation, whose own docstring is preferred to that of the second, so that no
docstring stands in two pairs. Nothing is drawn at random: the same Python writes the same files.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from lcx.data import PythonCorpus

TURNS = 3
LONGEST = 160
"""Characters of an answer, at most."""


def asked(name: str, text: str) -> Iterator[tuple[str, str]]:
    """(question, answer) of each public function of a module that has a docstring."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    dotted = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.walk(module):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        said = (ast.get_docstring(node) or "").split("\n\n")[0]
        answer = " ".join(said.split())
        if 20 <= len(answer) <= LONGEST and answer.isascii():
            names = [argument.arg for argument in node.args.args]
            signature = ", ".join(n for n in names if n not in ("self", "cls"))
            yield f"What does {dotted}.{node.name}({signature}) do?", answer


def conversations() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The name of each conversation, and its questions and answers."""
    for document in PythonCorpus().documents():
        pairs, seen = [], set()
        for question, answer in asked(document.name, document.text.decode(errors="replace")):
            if answer not in seen:
                pairs.append((question, answer))
                seen.add(answer)
        module = document.name.removesuffix(".py").replace("/", "-")
        for number, first in enumerate(range(0, len(pairs) - TURNS + 1, TURNS)):
            yield f"{module}_{number}", pairs[first : first + TURNS]


def write_talk(path: Path) -> None:
    """Write all conversations."""
    lines = []
    for name, pairs in conversations():
        turns = []
        for question, answer in pairs:
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"id": name, "conversations": turns}))
    path.write_text("\n".join(lines) + "\n")


def write_pairs(path: Path) -> None:
    """Write all pairs."""
    lines = []
    for name, ((question, answer), (_, other), *_) in conversations():
        pair = {"id": name, "prompt": question, "chosen": answer, "rejected": other}
        lines.append(json.dumps(pair))
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python experiments/docstrings.py TALK.jsonl PAIRS.jsonl")
    write_talk(Path(sys.argv[1]))
    write_pairs(Path(sys.argv[2]))
