"""Penalties and filters against transformers' processors, each ragged row by itself."""

from dataclasses import is_dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.decoding import (
    Filters,
    MinLength,
    MinP,
    NoRepeatNGram,
    RepetitionPenalty,
    Seen,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from lcx.spec import describe
from tests.parity.against_torch import NEEDED

torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("transformers", reason=NEEDED)

from transformers.generation import logits_process as hf  # noqa: E402

EACH, VOCAB, ROOM = 16, 97, 40
TIES = slice(EACH, 2 * EACH)


@cache
def case() -> tuple[np.ndarray, Seen]:
    """Logits, and ragged rows in a buffer that holds other tokens beyond them.

    Smooth logits, some with ties, some with banned tokens, some very large.
    """
    rng = np.random.default_rng(0)
    smooth, ties, banned, large = rng.normal(0, 3, (4, EACH, VOCAB))
    banned[rng.random(banned.shape) < 0.5] = -np.inf
    given = np.concatenate([smooth, np.round(ties), banned, large * 1e30]).astype(np.float32)
    tokens = rng.integers(0, 12, (4 * EACH, ROOM))
    length = rng.integers(2, ROOM + 1, 4 * EACH)
    prompt = rng.integers(1, length)
    return given, Seen(*(jnp.asarray(a, jnp.int32) for a in (tokens, length, prompt)))


def name(setting: object) -> str:
    return describe(setting) if is_dataclass(setting) else ""


def processed(processor, given: np.ndarray, seen: Seen) -> np.ndarray:
    """What transformers makes of each row; `processor`: by the length of the row's prompt."""
    rows = []
    for z, tokens, length, prompt in zip(given, *map(np.asarray, seen), strict=True):
        of_row = processor(int(prompt))
        ids = torch.tensor(tokens[None, :length], dtype=torch.long)
        rows.append(of_row(ids, torch.tensor(z[None]))[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (RepetitionPenalty(1.3), lambda _: hf.RepetitionPenaltyLogitsProcessor(1.3)),
        (RepetitionPenalty(0.7), lambda _: hf.RepetitionPenaltyLogitsProcessor(0.7)),
        (NoRepeatNGram(1), lambda _: hf.NoRepeatNGramLogitsProcessor(1)),
        (NoRepeatNGram(2), lambda _: hf.NoRepeatNGramLogitsProcessor(2)),
        (NoRepeatNGram(3), lambda _: hf.NoRepeatNGramLogitsProcessor(3)),
        (
            MinLength(9, stop=(3, 80)),
            lambda prompt: hf.MinNewTokensLengthLogitsProcessor(prompt, 9, [3, 80]),
        ),
    ],
    ids=name,
)
def test_penalties(ours, theirs):
    given, seen = case()
    expected = processed(theirs, given, seen)
    assert (expected != given).any()
    np.testing.assert_allclose(jax.jit(ours)(given, seen), expected, rtol=3e-7)  # a rounding


@pytest.mark.parametrize(
    "settings",
    [
        (Temperature(0.7),),
        *((TopK(k, 0.7), hf.TopKLogitsWarper(k)) for k in (1, 5, 50, 200)),
        *((TopP(p, 0.7), hf.TopPLogitsWarper(p)) for p in (1e-9, 0.1, 0.5, 0.9, 0.99, 1.0)),
        *((MinP(p, 0.7), hf.MinPLogitsWarper(p)) for p in (0.0, 0.05, 0.5, 1.0)),
        (
            Filters((TopK(20), TopP(0.8), MinP(0.1), Typical(0.9)), 0.7),
            hf.TopKLogitsWarper(20),
            hf.TopPLogitsWarper(0.8),
            hf.MinPLogitsWarper(0.1),
            hf.TypicalLogitsWarper(0.9),
        ),
        *((Typical(m, 0.7), hf.TypicalLogitsWarper(m)) for m in (0.01, 0.2, 0.5, 0.9, 0.99)),
    ],
    ids=lambda settings: name(settings[0]),
)
def test_filters(settings):
    ours, *theirs = settings
    given, seen = case()
    warm = hf.TemperatureLogitsWarper(0.7)
    all_of_them = hf.LogitsProcessorList([warm, *theirs])
    expected = processed(lambda prompt: all_of_them, given, seen)
    got = np.array(jax.jit(ours.filtered)(given, seen))
    if isinstance(ours, TopP | Filters):  # torch's sort has equal ones in any order
        expected[TIES], got[TIES] = np.sort(expected[TIES]), np.sort(got[TIES])
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    # said up to a constant; a rounding of a row's largest logit, measured: 9e-8 of it
    there, size = np.isfinite(expected), np.abs(np.where(np.isneginf(given), 0, given)).max(1) / 0.7
    got, expected = (np.where(there, a - a.max(1, keepdims=True), 0) for a in (got, expected))
    assert np.max(np.abs(got - expected) / size[:, None]) < 5e-7
