"""What does a small model need before it answers: pretraining, tuning on answers, preferences?

A base reads the Python standard library. It is then tuned on conversations about that library
(`docstrings.py`: three questions about functions of one module, answered by their docstrings), on
the answers alone, in ChatML. Beside it: the base as it is, asked the same; and the same tuning of a
model that has read nothing. All predict the same stretches of answers about modules that the tuning
has not seen. The base has read most modules, their docstrings among them, so that what it gains is
in part memory.

    lcx compare experiments/chat.py --only asked,tuned,from_nothing

Last, DPO makes the tuned model prefer a function's own docstring to another's of the module. Its
data are pairs, so it has a page of its own; beside it is the tuned model, asked for the preferred
answers of the same pairs. How often the own docstring leads is in the log and in metrics.jsonl.

    lcx compare experiments/chat.py --only preferred,before
    lcx generate runs/chat/preferred --chat --decoding 'Greedy(penalties=(RepetitionPenalty(1.2),))'

What is made of the docstrings is written into lcx's cache, once for each Python. Cost: 5 minutes on
2 cores. The numbers are in `LOG.md`.

Expected, and measured, of three trainings: without pretraining the tuning stays far behind (82.6
where the tuned base has 26.2, at 128 tokens). What tuning adds to a base that has read most
docstrings is small, and not told from nothing: 13% (-5 to 28%) where the question is in sight. 100
steps of DPO bring the share of training pairs whose own docstring leads from a half to two thirds,
and make the preferred answers less likely, as it is known to make both. The answers have the form
of answers, and are not true; without the penalty some loop.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from docstrings import write_pairs, write_talk

from lcx import (
    BPE,
    DPO,
    LM,
    AdamW,
    Block,
    ChatML,
    Conversations,
    Data,
    Experiment,
    Experiments,
    Muon,
    Pairs,
    PythonCorpus,
    RMSNorm,
    SameTargets,
    SoftmaxAttention,
    Train,
    cache,
)
from lcx.data import python_source

TOKENIZER = BPE(1024, special=("<|im_start|>", "<|im_end|>"), of=PythonCorpus())
HELD_OUT = {"validation": 0.05, "test": 0.3}
"""Answers are short, and intervals need many."""
OPTIMIZER = Muon(peak=1e-2, schedule="wsd", final=0.0)
MODEL = LM(
    vocab=1024,
    width=128,
    pattern=(Block(SoftmaxAttention(heads=4, qk_norm=RMSNorm())),),
    repeats=3,
    tied=True,
)


def written(kind: str, write: Callable[[Path], None]) -> str:
    """The file of what is made of this Python's docstrings."""
    place = cache.folder() / "docstrings" / f"{python_source.key()}-{kind}.jsonl"
    return str(cache.once(place, write))


def experiments() -> Experiments:
    """The base, and what is made of it."""
    answers = Data(Conversations(written("talk", write_talk), ChatML()), TOKENIZER, **HELD_OUT)
    pairs = Data(Pairs(written("pairs", write_pairs), ChatML()), TOKENIZER, **HELD_OUT)
    base = Experiment(
        MODEL,
        Data(PythonCorpus(), TOKENIZER),
        Train(length=256, batch=4, steps=1600, optimizer=OPTIMIZER, evaluate_every=800),
        SameTargets((32, 64, 128), span=40, spans=4, documents=400),
    )
    fine_tune = replace(base.train, steps=600, optimizer=replace(OPTIMIZER, peak=3e-3))
    prefer = replace(base.train, length=160, batch=16, steps=100, loss=DPO(), optimizer=AdamW(3e-4))
    asked = replace(base, data=answers, train=replace(base.train, steps=0), init_from="base")
    short = SameTargets((16, 32, 64), span=40, documents=400)  # a pair has one question
    before = replace(asked, data=pairs, init_from="tuned", evaluation=short)
    return {
        "base": base,
        "asked": asked,
        "tuned": replace(asked, train=fine_tune),
        "from_nothing": replace(asked, train=fine_tune, init_from=None),
        "before": before,
        "preferred": replace(before, train=prefer),
    }
