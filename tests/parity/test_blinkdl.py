"""RWKV-4 to 7 as BlinkDL keeps them, against his own package: logits, pieces, states; in fp32.

Gradients of what the package, which only reads, computes: `tests/test_equations.py`, in float64.
"""

import importlib.util
import subprocess
import sys
import warnings
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lcx.checking.trial import compiled
from lcx.command import exporting
from lcx.huggingface import Pretrained
from lcx.huggingface.export import write_model
from lcx.huggingface.folder import SINGLE
from lcx.huggingface.tensors import written
from lcx.mixers import RWKV7
from lcx.model import LM
from lcx.types import Batch, Params
from tests.blinkdl import VERSIONS, VOCAB, Tensors, state_dict
from tests.parity.against_torch import NEEDED, stream

torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("rwkv", reason=NEEDED)

PIECES, THEIR_PIECES = (1, 7, 33, 7), (40, 1, 1, 6)
LENGTH = sum(PIECES)


class Pair(NamedTuple):
    """One model twice, with the same weights."""

    theirs: Any
    model: LM
    params: Params


@pytest.fixture(scope="module")
def package():
    """Their class by version: the module decides by the environment when it is imported."""

    @cache
    def theirs(seven: bool) -> Any:
        patch.setenv("RWKV_V7_ON", str(int(seven)))
        spec = importlib.util.find_spec("rwkv.model")
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
        return module.RWKV

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKV_JIT_ON", "0")
        patch.setenv("RWKV_CUDA_ON", "0")
        yield lambda version: theirs(version == 7)


def loaded(cls: Any, folder: Path) -> Any:
    """A model of theirs, from the `model.pth` in a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(model=str(folder / "model"), strategy="cpu fp32")


def save(tensors: Tensors, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SINGLE)
    torch.save({name: torch.from_numpy(a) for name, a in tensors.items()}, folder / "model.pth")


@pytest.fixture(scope="module", params=VERSIONS, ids="RWKV-{}".format)
def pair(request, package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rwkv")
    save(state_dict(request.param), folder)
    weights = Pretrained(str(folder))
    model = weights.model()
    return Pair(loaded(package(request.param), folder), model, weights.load(model))


def read_by(theirs: Any, tokens: np.ndarray, pieces: tuple[int, ...]) -> tuple[np.ndarray, list]:
    """Their logits of a row in pieces, and the state after it."""
    logits, state = [], None
    for piece in np.split(tokens[0], np.cumsum(pieces)[:-1]):
        out, state = theirs.forward(piece.tolist(), state, full_output=True)
        logits.append(out.numpy().reshape(len(piece), -1))
    return np.concatenate(logits), state


def test_logits_pieces_and_states(pair):
    tokens = np.random.default_rng(1).integers(0, VOCAB, (1, LENGTH), np.int32)
    expected, _ = read_by(pair.theirs, tokens, (LENGTH,))
    again, theirs = read_by(pair.theirs, tokens, THEIR_PIECES)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5)  # measured: 1.6e-6
    call = compiled(partial(pair.model))
    logits = call(pair.params, Batch(tokens)).x[0]
    # measured: up to 5.3e-6; 1.2e-5 of RWKV-6, in the op's fast form
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-5)
    streamed, state = stream(call, pair.params, tokens, pair.model.init_state(1, LENGTH), PIECES)
    np.testing.assert_allclose(streamed[0], expected, rtol=0, atol=2e-5)  # measured: 4.2e-6

    got, wanted = ours(state), kept(theirs, pair)
    assert got.keys() == wanted.keys()
    for name, a in wanted.items():
        within = 4e-6 * max(1, np.abs(a).max())  # measured: 8e-7
        np.testing.assert_allclose(got[name], a, rtol=0, atol=within, err_msg=name)


def ours(state: Any) -> dict[str, np.ndarray]:
    """What lcx keeps of a row, by layer."""
    mixer, channel = jax.tree.map(lambda *a: np.stack(a)[:, 0], *state.layers)
    found = {"mixer": mixer.last, "channel": channel.last}
    if hasattr(mixer, "S"):
        return found | {"S": mixer.S}
    return found | sums(mixer.wkv.numerator, mixer.wkv.denominator, mixer.wkv.exponent)


def kept(state: list, pair: Pair) -> dict[str, np.ndarray]:
    """What they keep of it: tensors of one layer after those of another."""
    kinds = len(state) // pair.model.repeats
    last, *past, channel = (np.stack([a.numpy() for a in state[i::kinds]]) for i in range(kinds))
    found = {"mixer": last, "channel": channel}
    if len(past) > 1:
        return found | sums(*past)
    transposed = isinstance(pair.model.pattern[0].mixer, RWKV7)  # [V, K]
    return found | {"S": past[0].swapaxes(-1, -2) if transposed else past[0]}


def sums(numerator: Any, denominator: Any, exponent: Any) -> dict[str, np.ndarray]:
    """RWKV-4's, which are e^exponent times the stored ones: that split is not unique."""
    return {"average": numerator / denominator, "log_sum": exponent + np.log(denominator)}


def test_the_command_that_a_pickle_is_refused_with_converts_it(package, tmp_path):
    """Parameters, views and tensors that share memory; with quotes and spaces in the path."""
    tensors, folder = state_dict(7), tmp_path / "RWKV's own"
    pickled = {name: torch.from_numpy(a).bfloat16() for name, a in tensors.items()}
    pickled["emb.weight"] = torch.nn.Parameter(pickled["emb.weight"])
    pickled["head.weight"] = pickled["head.weight"].T.contiguous().T
    shared = torch.stack([pickled["blocks.0.ln1.bias"], pickled["blocks.0.ln2.bias"]])
    pickled["blocks.0.ln1.bias"], pickled["blocks.0.ln2.bias"] = shared
    folder.mkdir()
    torch.save(pickled, folder / "RWKV-x070.pth")
    weights = Pretrained(str(folder))
    with pytest.raises(FileNotFoundError, match=r"RWKV-x070.pth is a pickle") as refused:
        weights.model()
    _, _, command = str(refused.value).partition("convert it by python ")
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True)
    weights = Pretrained(str(folder))
    assert weights.dtype == "bfloat16"
    model = weights.model()
    found = dict(written(weights.family, model, weights.load(model)))
    for name, a in pickled.items():
        np.testing.assert_array_equal(found[name], a.detach().float().numpy(), err_msg=name)


@pytest.mark.parametrize("version", [5, 6, 7])
def test_the_card_of_an_export_says_how_to_read_it(version, tmp_path, monkeypatch):
    """Its code, as it stands there, reads what is written."""
    folder = tmp_path / "mine"
    save(state_dict(version), tmp_path)
    weights = Pretrained(str(tmp_path))
    model = weights.model()
    write_model(folder, model, weights.load(model))
    said = exporting.RWKV.format(folder="mine", tokenizer="", is_7=version == 7)
    code = said.removeprefix("```python\n").removesuffix("```\n") + "model.forward([1, 2], None)\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    again = torch.load(tmp_path / "mine.pth", weights_only=True)
    tensors = torch.load(tmp_path / "model.pth", weights_only=True)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], a) for name, a in tensors.items())
