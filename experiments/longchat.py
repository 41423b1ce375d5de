"""LongChat's recipe: does a model that was trained short read long texts after two cheap steps?

Step 1 condenses the rotary embedding: positions are divided by the ratio of the new length to the
old. Step 2 fine-tunes on long documents, cut at the new length (Li et al. 2023,
lmsys.org/blog/2023-06-29-longchat). Beside it: the model as it was, the model with step 1 alone,
and with step 2 alone. All are asked for the same spans at every length of context.

    lcx compare experiments/longchat.py

trains a small base on the Python standard library first. A published Llama takes its place, and
your own texts the place of the library's, when the environment says where they are:

    LONGCHAT_MODEL=~/models/llama      a folder with config.json, *.safetensors and tokenizer.json
    LONGCHAT_TEXTS='~/chats/*.json'    conversations (or *.jsonl), or '~/texts/**/*.txt'
    LONGCHAT_RATIO=8                   the new length over the model's own

A fine-tune of 7 B parameters takes a mesh: `--set mesh.fsdp=8`.

Cost: 10 minutes of processor time. The numbers are in `LOG.md`.

Expected, and measured, of one training: the base gains by reading up to the 128 tokens of its
training (perplexity 28.9 at 16 tokens, 17.1 at 128) and worsens at every doubling after, to 62.4 at
1,024. Step 1 alone makes it poor everywhere, and level. Both steps gain all the way to the new
length, to 11.7, a third less than the base at its best, and lose little at short contexts that
fine-tuning alone would not lose. It takes a long fine-tune, half as many tokens as the base was
trained on: a quarter of that leaves 23.8, worse than the base at 128. Step 2 alone does nearly as
well at this size, 12.3, and gains little past 512 tokens; after the short fine-tune it was ahead,
with 16.1. A small model learns new distances as soon as it sees them. LongChat's claim, that
condensing is what makes a short fine-tune enough, is about large ones, and is not shown here.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lcx import (
    BPE,
    LM,
    AdamW,
    Block,
    Conversations,
    Data,
    Experiment,
    Experiments,
    Muon,
    PositionInterpolation,
    Pretrained,
    PythonCorpus,
    RMSNorm,
    RoPE,
    SameTargets,
    SoftmaxAttention,
    TextFiles,
    TokenizerFile,
    Train,
)
from lcx.data import Source
from lcx.optim import Optimizer


class Start(NamedTuple):
    """What the recipe begins from."""

    model: Callable[[RoPE], LM]
    position: RoPE
    data: Data
    train: Train
    init_from: Pretrained | None
    optimizer: Optimizer
    """Of the fine-tune."""


def texts() -> Source:
    """The user's own, or the Python standard library."""
    if not (asked := os.environ.get("LONGCHAT_TEXTS")):
        return PythonCorpus()
    glob = str(Path(asked).absolute())  # from where the command is given
    if not glob.endswith((".json", ".jsonl")):
        return TextFiles(glob)
    # a fine-tune of what a model reads, not of how it answers: every token counts
    return Conversations(glob, scored="everything", odd="keep")


def small(source: Source) -> Start:
    """Three layers of width 128, trained on 128 tokens at a time."""

    def model(position: RoPE) -> LM:
        block = Block(SoftmaxAttention(heads=4, qk_norm=RMSNorm(), position=position))
        return LM(vocab=1024, width=128, pattern=(block,), repeats=3)

    optimizer = Muon(peak=1e-2, schedule="wsd", final=0.0)
    train = Train(length=128, batch=8, steps=1600, optimizer=optimizer)
    fine_tune = replace(optimizer, peak=3e-3)
    return Start(model, RoPE(), Data(source, BPE(1024)), train, None, fine_tune)


def published(folder: str, source: Source) -> Start:
    """A published model as it is; its length is what its config says."""
    weights = Pretrained(folder)
    position = weights.position
    if not isinstance(position, RoPE) or position.scaling is not None:
        raise ValueError(f"{folder}: {position}: a model that is not extended yet is needed")
    if weights.trained_length is None:
        raise ValueError(
            f"{folder}: its config says no max_position_embeddings, the length to extend"
        )
    data = Data(source, TokenizerFile(str(Path(folder) / "tokenizer.json")))
    train = Train(length=weights.trained_length, batch=1, steps=0)
    return Start(weights.model, position, data, train, weights, AdamW(peak=2e-5, warmup=6))


def experiments() -> Experiments:
    """Before, each step alone, and both."""
    asked, folder = os.environ.get("LONGCHAT_RATIO", "8"), os.environ.get("LONGCHAT_MODEL")
    if not asked.isdecimal() or int(asked) < 2:
        raise ValueError(f"LONGCHAT_RATIO={asked}: a whole number from 2 on is needed")
    ratio = int(asked)
    start = published(folder, texts()) if folder else small(texts())
    short, long = start.train.length, ratio * start.train.length
    contexts = [max(short // 8, 1)]
    while 2 * contexts[-1] <= long:
        contexts.append(2 * contexts[-1])
    evaluation = SameTargets(tuple(contexts), documents=24)

    as_it_was = start.model(start.position)
    condensed = start.model(replace(start.position, scaling=PositionInterpolation(float(ratio))))
    base = Experiment(as_it_was, start.data, start.train, evaluation, init_from=start.init_from)
    # cut at the new length; all that are asked for are long
    documents = replace(start.data, at_least=contexts[-1])
    fine_tune = Train(length=long, batch=1, steps=800, optimizer=start.optimizer)
    zero_shot = replace(start.train, steps=0)
    after = replace(base, init_from="base")
    return {
        "base": base,
        "condensed": replace(after, model=condensed, train=zero_shot),
        "tuned_alone": replace(after, data=documents, train=fine_tune),
        "longchat": replace(after, model=condensed, data=documents, train=fine_tune),
    }
