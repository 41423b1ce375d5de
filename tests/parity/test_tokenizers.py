"""Token ids of tokenizer files, against those that transformers gives."""

import json
from pathlib import Path

import pytest

from lcx.data import Documents, TokenizerFile
from tests.parity.against_torch import NEEDED
from tests.test_tokenizers import llama_2_like

transformers = pytest.importorskip("transformers", reason=NEEDED)


@pytest.mark.parametrize("legacy", [False, True])
def test_llamas_tokenizer_as_transformers_writes_it(tmp_path: Path, legacy: bool):
    """transformers puts a space before the first word. lcx does not, so it is given with one."""
    model = json.loads(llama_2_like())["model"]
    theirs = transformers.LlamaTokenizerFast(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], legacy=legacy
    )
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["pre_tokenizer"]["type"] == "Metaspace"
    ours = TokenizerFile(str(tmp_path / "tokenizer.json")).load(Documents([], lambda i: b""))
    assert ours.bos == theirs.bos_token_id
    for text in ("the lo", "lo  the\n the, loother", "caf\u00e9 \u4f60 the", "T"):
        ids = ours.encode(f" {text}".encode()).tolist()
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == f" {text}".encode()
        assert ours.decode(ours.encode(text.encode())) == text.encode()
