"""What does a small model need before it answers: pretraining, fine-tuning on answers, or both?

A base reads the Python standard library. It is then fine-tuned on conversations about that library
(`docstrings.py`: three questions about functions of one module, answered by their docstrings), on
the answers alone, in ChatML. Beside it: the base as it is, asked the same; and the same fine-tune
of a model that has read nothing. All predict the same stretches of answers about modules that the
fine-tune has not seen. The base has read most modules, their docstrings among them, so that what it
gains is in part memory.

    lcx compare experiments/chat.py --only asked,tuned,from_nothing
    lcx generate runs/chat/tuned --chat

The conversations are written into lcx's cache, once for each Python. Cost: about 5 minutes on 2
cores. The numbers are in `LOG.md`.

Expected, and measured, of one training: without pretraining the fine-tune stays far behind (113
where the tuned base has 19.5, at 128 tokens); tuning helps where the question is in sight. The
answers have the form of answers, and are not true.
"""

from dataclasses import replace

from docstrings import write

from lcx import (
    BPE,
    LM,
    Block,
    ChatML,
    Conversations,
    Data,
    Experiment,
    Experiments,
    Muon,
    PythonCorpus,
    RMSNorm,
    SameTargets,
    SoftmaxAttention,
    Train,
    cache,
)
from lcx.data import python_source

TOKENIZER = BPE(1024, special=("<|im_start|>", "<|im_end|>"), of=PythonCorpus())
OPTIMIZER = Muon(peak=1e-2, schedule="wsd", final=0.0)
MODEL = LM(
    vocab=1024,
    width=128,
    pattern=(Block(SoftmaxAttention(heads=4, qk_norm=RMSNorm())),),
    repeats=3,
    tied=True,
)


def talk() -> Conversations:
    """The conversations about this Python's library."""
    place = cache.folder() / "docstrings" / f"{python_source.key()}.jsonl"
    return Conversations(str(cache.once(place, write)), ChatML())


def experiments() -> Experiments:
    """The base, and what is made of it."""
    answers = Data(talk(), TOKENIZER)
    base = Experiment(
        MODEL,
        Data(PythonCorpus(), TOKENIZER),
        Train(length=256, batch=4, steps=1600, optimizer=OPTIMIZER, evaluate_every=800),
        SameTargets((32, 64, 128), span=40, documents=100),
    )
    fine_tune = replace(base.train, steps=600, optimizer=replace(OPTIMIZER, peak=3e-3))
    asked = replace(base, data=answers, train=replace(base.train, steps=0), init_from="base")
    return {
        "base": base,
        "asked": asked,
        "tuned": replace(asked, train=fine_tune),
        "from_nothing": replace(asked, train=fine_tune, init_from=None),
    }
