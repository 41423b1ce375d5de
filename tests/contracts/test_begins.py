"""The law of `Context.initial`: a document that begins from a state reads as one that goes on.

Outputs, and gradients by parameters, by the input and by the state; on shards as on one device.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.adapters.beginning import begun
from lcx.checking.bounds import rounding
from lcx.checking.trial import compiled
from lcx.mixers import SoftmaxAttention
from lcx.parallel.seqpar import Shards, stacked
from lcx.sparsity import Full
from lcx.types import Begins, Context
from tests.bounds import assert_rounded
from tests.contracts.cases import SUBLAYERS, case, name

BEFORE, LENGTH = 9, 40

BEGINNING = tuple(
    h
    for h in SUBLAYERS
    if isinstance(h, Begins) or (isinstance(h, SoftmaxAttention) and isinstance(h.sparsity, Full))
)
every_beginning = pytest.mark.parametrize("sublayer", BEGINNING, ids=name)


class Read(NamedTuple):
    y: jax.Array
    params: object
    x: jax.Array
    before: jax.Array


SEGMENTS = np.array([[1] * 13 + [2] + [3] * 26, [1] * 5 + [2] + [3] * 34], np.int32)
"""Three documents a row, the second of a single token."""


def context() -> Context:
    """Of these; positions behind those of the state."""
    starts = np.diff(SEGMENTS, axis=1, prepend=0) > 0
    index = np.arange(LENGTH)
    positions = BEFORE + index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    positions, segments = (jnp.asarray(a, jnp.int32) for a in (positions, SEGMENTS))
    return Context.of(positions, segments, lengths=jnp.full_like(segments, 60))


def state_before(sublayer, params, before):
    """After a row of BEFORE tokens, as documents begin from it; and as it is gone on from."""
    dims = case(sublayer).dims
    at = jnp.arange(BEFORE, dtype=jnp.int32)[None]
    ctx = Context(at, lengths=jnp.full_like(at, 60))
    state = sublayer.init_state(dims, 1, BEFORE + LENGTH)
    return sublayer(params, before, ctx, state).state


def packed(sublayer, params, x, before, ctx):
    state = begun(state_before(sublayer, params, before), BEFORE)
    return sublayer(params, x, ctx._replace(initial=state)).x


def in_shards(sublayer, params, x, before, ctx):
    state = begun(state_before(sublayer, params, before), BEFORE)

    def call(params, x, ctx, state):
        return sublayer(params, x, ctx._replace(shards=shards, initial=state)).x

    shards = Shards(4, one_device=True)
    return stacked(call, shards, (None, 0, 0, None))(params, x, ctx, state)


def in_pieces(sublayer, params, x, before, ctx):
    """Two pieces of the rows, with a state of their own between."""
    first = begun(state_before(sublayer, params, before), BEFORE)
    state, outputs = sublayer.init_state(case(sublayer).dims, len(x), LENGTH), []
    for at in (slice(0, 17), slice(17, LENGTH)):
        piece = jax.tree.map(lambda a, at=at: a[:, at], ctx)._replace(initial=first)
        y, state, _ = sublayer(params, x[:, at], piece, state)
        outputs.append(y)
    return jnp.concatenate(outputs, axis=1)


def apart(sublayer, params, x, before, ctx):
    """Each document by itself, which goes on from the state."""
    state, rows = state_before(sublayer, params, before), []
    for row, own in enumerate(SEGMENTS):
        outputs = []
        for number in (1, 2, 3):
            (where,) = np.nonzero(own == number)
            at = slice(where[0], where[-1] + 1)
            one = Context(ctx.positions[row, None, at], lengths=ctx.lengths[row, None, at])
            outputs.append(sublayer(params, x[row, None, at], one, state).x)
        rows.append(jnp.concatenate(outputs, axis=1))
    return jnp.concatenate(rows)


@cache
def read(how, sublayer):
    @compiled
    def read(params, x, before, ctx) -> Read:
        probe = jax.random.normal(jax.random.key(9), x.shape[1:])

        def loss(params, x, before):
            y = how(sublayer, params, x, before, ctx)
            return (y.astype(jnp.float32) * probe).sum(), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, before)
        return Read(y, *gradients)

    return read


def given(sublayer):
    c = case(sublayer)
    return c.params, c.x[:, :LENGTH], c.x[:1, -BEFORE:], context()


@cache
def expected(sublayer):
    args = given(sublayer)
    return read(apart, sublayer)(*args), rounding(read(apart, sublayer), *args)


@every_beginning
@pytest.mark.parametrize("how", [packed, in_pieces, in_shards], ids=lambda how: how.__name__)
def test_a_document_begins_from_a_state_as_it_would_go_on_from_it(how, sublayer):
    assert_rounded(read(how, sublayer)(*given(sublayer)), *expected(sublayer))


@every_beginning
def test_what_it_begins_from_makes_a_difference(sublayer):
    params, x, before, ctx = given(sublayer)
    y = compiled(sublayer)(params, x, ctx).x
    other = read(packed, sublayer)(params, x, before, ctx).y
    for number in (1, 2, 3):
        assert (np.abs(np.asarray(y - other)[number == SEGMENTS]) > 1e-4).any()


@every_beginning
def test_bf16_stays_bf16(sublayer):
    c = case(sublayer, "bfloat16")
    args = c.params, c.x[:, :LENGTH], c.x[:1, -BEFORE:], context()
    y = read(packed, sublayer)(*args).y
    assert y.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(y, np.float32)).all()
