"""`lcx export`: a trained run as a folder that anybody's transformers reads, or RWKV's own code."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lcx import __version__, spec
from lcx.adapters import LoRA, PrefixTuning, PromptTuning
from lcx.data import Tokenizer
from lcx.data.byte_level import ByteLevelTokenizer, ByteTokenizer
from lcx.evaluation.metrics import Evaluation
from lcx.huggingface import Pretrained
from lcx.huggingface.blinkdl import VERSIONS
from lcx.huggingface.export import check_empty, family_of, write_model
from lcx.huggingface.peft import write_adapter
from lcx.huggingface.peft_prompts import write_prompt
from lcx.model import count_parameters
from lcx.opened import OpenedRun, open_run
from lcx.progress import plain_console

USE = """\
```python
from transformers import AutoModelForCausalLM{more}

model = AutoModelForCausalLM.from_pretrained("{folder}")
{tokenizer}```
"""
SPELLED = """\
tokenizer = AutoTokenizer.from_pretrained("{folder}")
ids = tokenizer("The beginning of a text", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))
"""
RWKV = """\
```python
import os
from pathlib import Path

os.environ["RWKV_V7_ON"] = "{is_7:d}"
import torch
from rwkv.model import RWKV  # pip install rwkv
from safetensors.torch import load_file

parts = [load_file(file) for file in Path("{folder}").glob("*.safetensors")]
torch.save({{name: a for part in parts for name, a in part.items()}}, "{folder}.pth")
model = RWKV(model="{folder}", strategy="cpu fp32")
{tokenizer}```
"""
RWKV_SPELLED = """\
from tokenizers import Tokenizer

ids = Tokenizer.from_file("{folder}/tokenizer.json").encode("The beginning of a text").ids
logits, state = model.forward(ids, None)
"""


def export(folder: Path, to: Path) -> None:
    """Write the run in `folder` to a folder of its own, all of it or nothing.

    For transformers where it has the family, else, RWKV-5 to 7, in the layout of BlinkDL's files.
    Raises ValueError for a model that no published family is, FileExistsError where `to` holds
    something, FileNotFoundError where the run is not finished.
    """
    run = open_run(folder)
    family, config = family_of(run.model)
    kind, state_dict = config["model_type"], family in VERSIONS
    check_empty(to)
    tokenizer = run.texts.tokenizer
    bos = tokenizer.bos if isinstance(tokenizer, Tokenizer) else None
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as made:
        whole = Path(made) / "whole"
        write_model(whole, run.model, run.plain_params, run.experiment.train.length, bos)
        if bos is not None and not state_dict:
            ids = {"bos_token_id": bos, "eos_token_id": bos}
            _write(whole / "generation_config.json", ids)
        spells = _write_tokenizer(whole, tokenizer, run.experiment.train.length)
        card = _card(run, to.name, kind, state_dict, spells)
        (whole / "README.md").write_text(card, encoding="utf-8")
        if to.exists():
            to.rmdir()
        shutil.move(whole, to)
    plain_console().print(f"{run.run.name}, {_layout(kind, state_dict)}: {to}", highlight=False)


def _layout(kind: str, state_dict: bool) -> str:
    """How a family is written."""
    return f"as BlinkDL's {kind}, a state dict" if state_dict else f"as a {kind} for transformers"


def export_adapter(folder: Path, to: Path) -> None:
    """Write what a tuned run has trained, as a folder that peft reads beside its base.

    Raises ValueError for a run whose method peft does not have, and as `export` does.
    """
    run = open_run(folder)
    tune, start = run.experiment.tune, run.experiment.init_from
    base = start.folder if isinstance(start, Pretrained) else None
    match tune:
        case LoRA():
            write_adapter(to, run.model, tune, run.trained, base)
        case PromptTuning() | PrefixTuning():
            write_prompt(to, run.model, tune, run.trained, base)
        case _:
            how = "by none" if tune is None else f"by {type(tune).__name__}"
            raise ValueError(
                "--adapter writes what LoRA, PromptTuning, PTuning and PrefixTuning have trained; "
                f"{run.run.name} was tuned {how}"
            )
    how = type(tune).__name__
    plain_console().print(f"{run.run.name}, what {how} has trained: {to}", highlight=False)


def _write_tokenizer(folder: Path, tokenizer: Any, length: int) -> bool:
    """tokenizer.json and its config; False where the model reads symbols, which spell nothing."""
    if not isinstance(tokenizer, ByteTokenizer | ByteLevelTokenizer):
        return False
    made = json.loads(tokenizer.json)
    bos = next(t["content"] for t in made["added_tokens"] if t["id"] == tokenizer.bos)
    if made.get("post_processor") is None:  # documents begin with BOS, and so do prompts
        made["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [_special(bos), {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                *(_special(bos), {"Sequence": {"id": "A", "type_id": 0}}),
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos], "tokens": [bos]}},
        }
    _write(folder / "tokenizer.json", made)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": bos,
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / "tokenizer_config.json", config)
    return True


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _card(run: OpenedRun, name: str, kind: str, state_dict: bool, spells: bool) -> str:
    """The model card: what it is, how it reads longer texts, and how to load it."""
    experiment = run.experiment
    made = {
        "architecture": spec.describe(experiment.model.pattern[0].mixer),
        "parameters": f"{count_parameters(run.model):,}",
        "trained on": spec.describe(experiment.data),
        "length of its texts": f"{experiment.train.length} tokens",
        "steps": f"{experiment.train.steps:,}",
        "written": f"{_layout(kind, state_dict)}, by lcx {__version__}",
    }
    facts = "\n".join(f"| {name} | {value} |" for name, value in made.items())
    tables = "\n".join(_result(result) for result in run.evaluations)
    if state_dict:
        library = ""
        spelled = RWKV_SPELLED.format(folder=name) if spells else ""
        use = RWKV.format(folder=name, tokenizer=spelled, is_7=kind == "RWKV-7")
    else:
        library = "library_name: transformers\n"
        spelled = SPELLED.format(folder=name) if spells else ""
        use = USE.format(folder=name, tokenizer=spelled, more=", AutoTokenizer" if spells else "")
    return (
        f"---\n{library}pipeline_tag: text-generation\ntags:\n- lcx\n"
        f"- {kind}\n---\n\n# {name}\n\n| | |\n|---|---|\n{facts}\n\n{tables}\n## Use\n\n{use}"
    )


def _result(result: Evaluation) -> str:
    """What one evaluation found, by context."""
    about = result["about"]
    measure = about["measures"][0]
    rows = "\n".join(
        f"| {point['context']:,} | {point[measure['key']]:.4g} | {_between(point, measure)} |"
        for point in result["contexts"]
    )
    return (
        f"## {measure['name'].capitalize()} by context\n\n{about['words']}\n\n"
        f"| context ({about['unit']}) | {measure['name']} | 95% interval over documents |\n"
        f"|---|---|---|\n{rows}\n"
    )


def _between(point: dict[str, Any], measure: dict[str, Any]) -> str:
    low, high = point[measure["interval"]]
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
