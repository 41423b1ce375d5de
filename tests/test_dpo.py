"""Direct preference optimisation: the equation, the start, accumulation, meshes, resume."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.block import Block
from lcx.logits import over_logits
from lcx.losses import DPO
from lcx.mixers import LinearAttention
from lcx.model import LM
from lcx.parallel.seqpar import AXIS, Shards
from lcx.types import Batch

MODEL = LM(vocab=11, width=8, pattern=(Block(LinearAttention(heads=2)),), repeats=1)


def one_token_pair(w: float, l: float, ref_w: float, ref_l: float) -> tuple:
    """Logits and a batch of two rows of one token, with these log-probabilities of the targets."""
    logp = np.array([[w], [l]])
    rest = np.log(-np.expm1(logp) / 10)  # ten other tokens share what is left
    logits = np.concatenate([logp[..., None], np.repeat(rest[..., None], 10, axis=-1)], axis=-1)
    zeros = jnp.zeros((2, 1), jnp.int32)
    return logits, Batch(zeros, targets=zeros, reference=jnp.array([[ref_w], [ref_l]]))


def test_the_loss_of_known_log_probabilities():
    logits, batch = one_token_pair(-10.0, -12.0, -11.0, -11.0)
    sums = DPO(beta=0.1)(jnp.asarray(logits), batch, lambda f, x, *rest: f(x, *rest))
    assert sums.minimised / DPO().divisor(batch) == pytest.approx(0.59814, abs=1e-5)
    assert sums.reports["preferred"] == 1
    assert sums.reports["lead"] == pytest.approx(0.2, abs=1e-6)


GAPS = [[1.0, -0.5, 2.0, 0.0], [0.5, 0.25, 0.0, 0.0], [-1.0, 0.75, 0.0, 0.0], [2.5, -2.0, 0.5, 1.5]]
"""Logits of two pairs' targets, of 3, 2, 2 and 4 tokens; that of the only other token is 0."""
KNOWN = [[-0.5, -0.75, -0.25, 0], [-0.25, -1, 0, 0], [-1.25, -0.5, 0, 0], [-0.125, -1.5, -1, -0.5]]
"""Log-probabilities of the targets under the reference."""


@pytest.mark.parametrize(
    ("loss", "value", "slopes"),
    [
        (
            DPO(0.5),
            0.7324472491037504,
            [
                -0.03457762389819406,
                0.048540158616977414,
                -0.09580689738836916,
                0.009941387847446331,
            ],
        ),
        (
            DPO(2.0, mean=True),
            0.7484465126653405,
            [-0.04801917118178098, 0.10111415662982456, -0.18933938613509108, 0.009823386017481298],
        ),
        (
            DPO(0.5, reference=False),
            0.6145917633671467,
            [
                -0.03667055589381814,
                0.051478222011421534,
                -0.06515560128143907,
                0.0067608608610572885,
            ],
        ),
        (
            DPO(2.0, reference=False, mean=True, margin=1.0),
            1.3726824500479649,
            [-0.06360226495410334, 0.13392753815419528, -0.28472405193321654, 0.014772173543468603],
        ),
    ],
    ids=["sigmoid", "sigmoid_norm", "CPO's sigmoid", "simpo"],
)
def test_values_and_gradients_are_those_of_trl(loss, value, slopes):
    """Computed by trl 1.16.0 in float64: `DPOTrainer` and, without a reference, `CPOTrainer`.

    The mean over pairs, and its slope by the gap of each row's first token.
    """
    scored = np.arange(4) < np.array([3, 2, 2, 4])[:, None]
    targets = jnp.where(scored, 0, -1)
    batch = Batch(jnp.zeros_like(targets), targets=targets, reference=jnp.asarray(KNOWN))

    def minimised(gaps):
        logits = jnp.stack([gaps, jnp.zeros_like(gaps)], axis=-1)
        sums = loss(logits, batch, lambda f, x, *rest: f(x, *rest))
        return sums.minimised / loss.divisor(batch)

    got, gradient = jax.value_and_grad(minimised)(jnp.asarray(GAPS))
    # measured: 1.4e-7 and 1.8e-7; on random logits, 1e-6 in all forms
    np.testing.assert_allclose(got, value, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 0], slopes, atol=1e-6 * np.abs(slopes).max())


def rows(rng: np.random.Generator, pairs: int = 3, length: int = 8) -> Batch:
    """Answers of different lengths, and padding."""
    shape = (2 * pairs, length)
    segments = np.arange(length) < rng.integers(5, length + 1, (2 * pairs, 1))
    scored = segments & (np.arange(length) >= 3)
    tokens, targets = rng.integers(0, 11, (2, *shape)).astype(np.int32)
    return Batch(
        jnp.asarray(tokens),
        segments=jnp.asarray(segments.astype(np.int32)),
        targets=jnp.where(scored, targets, -1),
        reference=jnp.asarray(np.where(scored, -rng.random(shape) * 4, 0).astype(np.float32)),
    )


def in_float64(loss: DPO, logits, batch: Batch):
    """The equation and its gradient with respect to the logits, by hand."""
    logits, scored = np.asarray(logits, np.float64), np.asarray(batch.scored)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.where(scored, np.asarray(batch.targets), 0)
    gained = np.take_along_axis(logp, targets[..., None], -1)[..., 0] * scored
    if loss.reference:
        gained -= np.asarray(batch.reference, np.float64)
    share = scored / (scored.sum(1, keepdims=True) if loss.mean else 1)
    of_rows = (gained * share).sum(1)
    z = loss.beta * (of_rows[0::2] - of_rows[1::2]) - loss.margin
    slope = -loss.beta / (1 + np.exp(z))  # of the loss by the preferred answer's log-probability
    onehot = np.eye(logits.shape[-1])[targets]
    gradient = (onehot - np.exp(logp)) * share[..., None]
    return np.log1p(np.exp(-z)).sum(), gradient * np.stack([slope, -slope], 1).ravel()[
        :, None, None
    ]


@pytest.mark.parametrize(
    "loss",
    [DPO(), DPO(beta=0.5, mean=True), DPO(2.0, reference=False, mean=True, margin=1.0)],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_equation(loss):
    rng = np.random.default_rng(0)
    batch = rows(rng)
    logits = jnp.asarray(3 * rng.standard_normal((*batch.tokens.shape, 11)).astype(np.float32))

    def minimised(logits):
        return loss(logits, batch, lambda f, x, *rest: f(x, *rest)).minimised

    value, gradient = jax.value_and_grad(minimised)(logits)
    expected, slopes = in_float64(loss, logits, batch)
    # measured: 1e-7 and 2e-7
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, atol=1e-6 * np.abs(slopes).max())


@pytest.mark.parametrize("mean", [False, True])
def test_pieces_of_rows_give_what_rows_do(mean):
    """Values and gradients, summed over four shards."""
    loss, shards = DPO(beta=0.5, mean=mean), Shards(4, one_device=True)
    rng = np.random.default_rng(1)
    batch = rows(rng)
    x = jnp.asarray(rng.standard_normal((*batch.tokens.shape, 8)).astype(np.float32))
    params = MODEL.init(jax.random.key(0))
    head = partial(over_logits, MODEL, params)

    def cut(a):
        return jnp.stack(jnp.split(a, shards.count, axis=1))

    def summed(x):
        one = jax.vmap(lambda x, batch: loss(x, batch, head, shards), axis_name=AXIS)
        sums = one(cut(x), jax.tree.map(cut, batch))
        return sums.minimised.sum(), jax.tree.map(lambda a: a.sum(axis=0), sums.reports)

    def whole(x):
        sums = loss(x, batch, head)
        return sums.minimised, sums.reports

    got, there = (jax.value_and_grad(f, has_aux=True)(x) for f in (summed, whole))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())


def test_a_model_that_is_its_reference_has_a_loss_of_ln_2():
    batch = rows(np.random.default_rng(2))
    x = jax.random.normal(jax.random.key(1), (*batch.tokens.shape, 8))
    head = partial(over_logits, MODEL, MODEL.init(jax.random.key(0)))
    plain = DPO(reference=False)(x, batch, head)
    assert abs(plain.shown / 3 - math.log(2)) > 1e-3
    nll = head(lambda logits, t: -jax.nn.log_softmax(logits), x, batch.targets)
    nll = jnp.take_along_axis(nll, jnp.maximum(batch.targets, 0)[..., None], -1)[..., 0]
    same = batch._replace(reference=-nll * batch.scored)
    sums = DPO()(x, same, head)
    assert abs(sums.shown / 3 - math.log(2)) < 1e-6
    with pytest.raises(ValueError, match="without the reference's"):
        DPO()(x, batch._replace(reference=None), head)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be positive, not 0"),
        ({"margin": -1.0}, "margin cannot be negative"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DPO(**settings)
