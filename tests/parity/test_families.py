"""Every family against transformers: whole models, in and out, in fp32."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from lcx.checking.trial import compiled
from lcx.huggingface import FAMILIES, Pretrained
from lcx.huggingface.config import NEUTRAL, Config
from lcx.huggingface.export import write_model
from lcx.model import LM
from lcx.types import Batch, Params
from tests.parity.against_torch import (
    NEEDED,
    assert_leaves_close,
    loss_and_gradients,
    randomise,
    stream,
)
from tests.parity.families import SMALL, Small

torch = pytest.importorskip("torch", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)

PIECES = (16, 16, 16)
BATCH, LENGTH = 2, sum(PIECES)


class Pair(NamedTuple):
    """One model twice, with the same weights."""

    small: Small
    torch: Any
    weights: Pretrained
    model: LM
    params: Params
    tokens: np.ndarray


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Each model once, when it is first asked for."""

    @cache
    def pair(name: str) -> Pair:
        small = SMALL[name]
        config = getattr(transformers, small.config)(**small.settings)
        module = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=small.attention
        )
        randomise(module.eval())
        at = tmp_path_factory.mktemp("families") / "model"
        module.save_pretrained(at, max_shard_size="60KB")
        weights = Pretrained(str(at))
        model = weights.model()
        tokens = np.random.default_rng(1).integers(0, 97, (BATCH, LENGTH), np.int32)
        return Pair(small, module, weights, model, weights.load(model), tokens)

    return pair


def gradients(pair: Pair, folder: Path) -> Pretrained:
    """Of a model of theirs, written as its weights are: under other names than it has in memory."""
    twin = type(pair.torch)(pair.torch.config)
    with torch.no_grad():
        for one, other in zip(twin.parameters(), pair.torch.parameters(), strict=True):
            one.copy_(other.grad)
    twin.save_pretrained(folder)
    return Pretrained(str(folder))


@pytest.mark.parametrize("name", SMALL)
def test_logits_loss_gradients_and_pieces(name, pairs, tmp_path):
    pair = pairs(name)
    tokens = torch.from_numpy(pair.tokens).long()
    out = pair.torch(tokens, labels=tokens, use_cache=False)
    expected = out.logits.detach().numpy()
    call = compiled(partial(pair.model))
    logits = call(pair.params, Batch(pair.tokens)).x
    np.testing.assert_allclose(logits, expected, rtol=0, atol=pair.small.within)
    state = pair.model.init_state(BATCH, LENGTH)
    streamed, _ = stream(call, pair.params, pair.tokens, state, PIECES)
    np.testing.assert_allclose(streamed, expected, rtol=0, atol=pair.small.within)

    pair.torch.zero_grad()
    out.loss.backward()
    loss, actual = loss_and_gradients(pair.model, pair.params, pair.tokens)
    assert loss == pytest.approx(out.loss.item(), abs=2e-6)
    theirs = gradients(pair, tmp_path).load(pair.model)
    assert_leaves_close(actual, theirs, within=pair.small.gradients)


@pytest.mark.parametrize("name", SMALL)
def test_out_and_in_again(name, pairs, tmp_path):
    """What lcx writes is what transformers wrote, to the bit, and loads there without a remark."""
    pair = pairs(name)
    write_model(tmp_path / "out", pair.model, pair.params)
    again = Pretrained(str(tmp_path / "out"))
    assert again.model() == pair.model
    jax.tree.map(np.testing.assert_array_equal, again.load(pair.model), pair.params)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation=pair.small.attention
    )
    assert not any(info.values()), info
    theirs = pair.torch.state_dict()
    for key, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value, theirs[key])
    tokens = torch.from_numpy(pair.tokens).long()
    with torch.no_grad():
        a, b = (m(tokens, use_cache=False).logits for m in (loaded.eval(), pair.torch))
    np.testing.assert_array_equal(a, b)


def others(value: Any) -> list[Any]:
    """Values of a config's field that are not the one it has."""
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, value * 2 + 2]
        case str():
            return [f"{value} of another kind"]
        case None:
            return [3, True]
        case list():
            return [value[::-1], [*value, "another"]]
    raise AssertionError(f"no other value than {value!r} is known here")


def fields(said: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each field, and the config's that it is part of; with other values."""
    for name, value in said.items():
        if name in NEUTRAL:
            continue
        if isinstance(value, dict):
            for inner, _, changed in fields(value):
                yield inner, name, said | {name: changed}
        else:
            for other in others(value):
                if other != value:
                    yield name, name, said | {name: other}


@pytest.mark.parametrize("name", SMALL)
def test_every_field_is_read_or_refused(name):
    """Or it is one of those that change nothing that a model computes."""
    small = SMALL[name]
    said = getattr(transformers, small.config)(**small.settings).to_dict()
    family = next(f for f in FAMILIES if said["model_type"] in f.kinds)
    first = Config(said, name)
    model = family.read(first)
    first.rest()
    ignored = []
    for field, where, changed in fields(said):
        config = Config(changed, name)
        try:
            same = family.read(config) == model
            config.rest()
        except ValueError:
            continue
        neutral = config.neutral.union(*(part.neutral for part in config.parts))
        if same and not neutral & {field, where}:
            ignored.append(field)
    assert not ignored
