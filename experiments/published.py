"""How do models that others trained read long texts, and what does an extension make of each?

    PUBLISHED='~/models/*' lcx evaluate experiments/published.py

Each folder is one that Hugging Face's models come in (config.json, safetensors, tokenizer.json), of
any family in `lcx.huggingface`; several patterns are parted by `:`. Nothing is trained. Beside each
model with plain RoPE stands the same one with its rotation scaled by YaRN to four times its length.
Tokenizers may differ: all read the same bytes before the same spans, and bits a byte are compared.

    PUBLISHED_TEXTS='~/books/**/*.txt'   your own texts, in place of the Python standard library
    PUBLISHED_LONGEST=8192               the longest context in bytes, in place of 8,192

Parameters are kept as the files hold them (bfloat16, mostly) and computed with in fp32:
`--set model.policy.compute=bfloat16` is faster on accelerators. Contexts are streamed in pieces; a
model beyond one device takes `--set mesh.fsdp=8`.
"""

import glob
import os
from dataclasses import replace
from pathlib import Path

from lcx import (
    Data,
    Experiment,
    Experiments,
    Policy,
    Pretrained,
    PythonCorpus,
    RoPE,
    SameTargets,
    TextFiles,
    TokenizerFile,
    Train,
    YaRN,
)
from lcx.positions import PositionScheme

FACTOR = 4.0
"""Of the extension."""


def folders() -> list[Path]:
    """Those that are asked for. Raises ValueError where there is none."""
    asked = os.environ.get("PUBLISHED", "")
    patterns = [str(Path(pattern).expanduser()) for pattern in asked.split(":") if pattern]
    found = [Path(path) for pattern in patterns for path in sorted(glob.glob(pattern))]
    models = [path for path in found if (path / "config.json").is_file()]
    if not models:
        said = f"{asked!r} names none" if asked else "it is not set"
        raise ValueError(f"PUBLISHED has to name folders of models, '~/models/*' say: {said}")
    return models


def scheme(weights: Pretrained) -> PositionScheme | None:
    """That of the mixers which take one, if any does."""
    try:
        return weights.position
    except ValueError:
        return None


def experiments() -> Experiments:
    """Each model as it is, and extended where its positions are plain RoPE."""
    longest = int(os.environ.get("PUBLISHED_LONGEST", "8192"))
    contexts = tuple(longest >> n for n in range(6, -1, -1))
    own = os.environ.get("PUBLISHED_TEXTS")
    source = TextFiles(str(Path(own).expanduser().absolute())) if own else PythonCorpus()
    evaluation = SameTargets(contexts, documents=24, unit="bytes", before=longest)
    made: Experiments = {}
    for folder in folders():
        weights = Pretrained(str(folder.absolute()))
        model = replace(weights.model(), policy=Policy(params=weights.dtype))
        data = Data(source, TokenizerFile(str(folder.absolute() / "tokenizer.json")))
        length = weights.trained_length or longest
        as_it_is = Experiment(
            model, data, Train(length, batch=1, steps=0), evaluation, init_from=weights
        )
        name = folder.name.replace(".", "_")
        made[name] = as_it_is
        position = scheme(weights)
        if isinstance(position, RoPE) and position.scaling is None:
            scaling = YaRN(FACTOR, original=length)
            longer = weights.model(replace(position, scaling=scaling))
            longer = replace(longer, policy=model.policy)
            made[f"{name}_yarn"] = replace(as_it_is, model=longer)
    return made
