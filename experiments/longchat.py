"""LongChat's recipe: does a model that was trained short read long texts after two cheap steps?

Step 1 condenses the rotary embedding: positions are divided by the ratio of the new length to the
old. Step 2 fine-tunes on long documents, cut at the new length (Li et al. 2023,
lmsys.org/blog/2023-06-29-longchat). Beside it: the model as it was, the model with step 1 alone,
and with step 2 alone. All are asked for the same spans at every length of context.

    lcx compare experiments/longchat.py

trains a small base on the Python standard library first. A published Llama takes its place, and
your own texts the place of the library's, when the environment says where they are:

    LONGCHAT_MODEL=~/models/llama      a folder with config.json, *.safetensors and tokenizer.json
    LONGCHAT_TEXTS='~/chats/*.json'    conversations (ShareGPT's form), or '~/texts/**/*.txt'
    LONGCHAT_RATIO=8                   the new length over the model's own

A fine-tune of 7 B parameters takes a mesh: `--set mesh.fsdp=8`.

Cost: about 12 minutes on 2 cores. The numbers are in `LOG.md`; they, and what is said below, were
measured on other targets than today's.

Expected, and measured: the base worsens at every doubling past its training. Step 1 alone makes it
poor everywhere, and level up to the new length. Both steps are level, and at 2,048 tokens three
times better than the base; at short contexts they are far from it, for 60 steps (0.15 million
tokens) win back 1.4 of the 2.4 nats that condensing costs. At this size a fine-tune without
condensing is better at every length that was measured: a small model learns new distances as soon
as it sees them. LongChat's claim is about large models, and about fine-tunes of a thousand steps.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lcx.data import Conversations, Data, PythonCorpus, Source, TextFiles, TokenizerFile
from lcx.experiment import Experiment, Experiments, Train
from lcx.mixers import SoftmaxAttention
from lcx.model import LM, Block
from lcx.optim import AdamW
from lcx.positions import Linear, RoPE
from lcx.pretrained import Pretrained
from lcx.protocols import SameTargets


class Start(NamedTuple):
    """What the recipe begins from."""

    model: Callable[[RoPE], LM]
    position: RoPE
    data: Data
    train: Train
    init_from: Pretrained | None
    peak: float
    """Of the fine-tune's learning rate."""


def texts() -> Source:
    """The user's own, or the Python standard library."""
    if not (glob := os.environ.get("LONGCHAT_TEXTS")):
        return PythonCorpus()
    return Conversations(glob) if glob.endswith(".json") else TextFiles(glob)


def small(source: Source) -> Start:
    """Four layers of width 128, trained on 320 bytes at a time."""

    def model(position: RoPE) -> LM:
        block = Block(SoftmaxAttention(heads=4, position=position))
        return LM(width=128, pattern=(block,), repeats=4)

    train = Train(length=320, batch=8, steps=1000, optimizer=AdamW(peak=2e-3, warmup=50))
    return Start(model, RoPE(), Data(source), train, None, peak=5e-4)


def published(folder: str, source: Source) -> Start:
    """A published model as it is; its length is what its config says."""
    weights = Pretrained(folder)
    position = weights.position
    if not isinstance(position, RoPE) or position.scaling is not None:
        raise ValueError(f"{folder}: {position}: a model that is not extended yet is needed")
    data = Data(source, TokenizerFile(str(Path(folder) / "tokenizer.json")))
    train = Train(length=weights.trained_length, batch=1, steps=0)
    return Start(weights.model, position, data, train, weights, peak=2e-5)


def experiments() -> Experiments:
    """Before, each step alone, and both."""
    asked, folder = os.environ.get("LONGCHAT_RATIO", "8"), os.environ.get("LONGCHAT_MODEL")
    if not asked.isdecimal() or int(asked) < 2:
        raise ValueError(f"LONGCHAT_RATIO={asked}: a whole number from 2 on is needed")
    ratio = int(asked)
    start = published(folder, texts()) if folder else small(texts())
    short, long = start.train.length, ratio * start.train.length
    contexts = [short]
    while 2 * contexts[-1] <= long:
        contexts.append(2 * contexts[-1])
    evaluation = SameTargets(tuple(contexts), documents=24)

    as_it_was = start.model(start.position)
    condensed = start.model(replace(start.position, scaling=Linear(float(ratio))))
    base = Experiment(as_it_was, start.data, start.train, evaluation, init_from=start.init_from)
    # cut at the new length; all that are asked for are long
    documents = replace(start.data, at_least=contexts[-1])
    optimizer = AdamW(peak=start.peak, warmup=6)
    fine_tune = Train(length=long, batch=1, steps=60, optimizer=optimizer)
    zero_shot = replace(start.train, steps=0)
    after = replace(base, init_from="base")
    return {
        "base": base,
        "condensed": replace(after, model=condensed, train=zero_shot),
        "tuned_alone": replace(after, data=documents, train=fine_tune),
        "longchat": replace(after, model=condensed, data=documents, train=fine_tune),
    }
