"""The law of sequence parallelism: a sublayer of a block on several shards computes what one does.

Outputs, the state after, and gradients by parameters, by the input and by the state before.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lcx.checking.bounds import rounding
from lcx.mixers import SoftmaxAttention
from lcx.ops import sharded_attention as module
from lcx.parallel.mesh import BATCH, Mesh, make_mesh, shardings
from lcx.parallel.seqpar import REPLICATED, SHARDED, Shards, sharded
from lcx.positions import ALiBi, XPos
from lcx.sparsity import SelfExtend, ShiftedGroups, Strided, Window
from lcx.spec import describe
from lcx.types import Context
from tests.bounds import assert_rounded, assert_within
from tests.contracts.cases import (
    ALGORITHMS,
    ROWS,
    SCHEMES,
    SUBLAYERS,
    case,
    documents,
    name,
)

LENGTH, ONE_DEVICE = 160, Mesh()


def in_shards(sublayer, count: int):
    """(params, x, ctx, state) -> (y, state after) of a sublayer whose sequence lies in pieces."""
    shards = Shards(count) if count > 1 else None

    def call(params, x, ctx, state):
        return sublayer(params, x, ctx._replace(shards=shards), state)[:2]

    return sharded(call, shards, (REPLICATED, SHARDED, SHARDED, REPLICATED), (SHARDED, REPLICATED))


class Results(NamedTuple):
    y: jax.Array
    after: Any
    params: Any
    x: jax.Array
    state: Any


def floats(tree):
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else None, tree)


@cache
def results(sublayer, mesh: Mesh = ONE_DEVICE, form: str | None = None):
    """Compiled (params, x, ctx, state, weight) -> Results; arguments may lie on the mesh already.

    weight: of the state after, in what gradients are of. form: a name for what else is different.
    """

    @jax.jit
    def results(params, x, ctx, state, weight) -> Results:
        probe = jax.random.normal(jax.random.key(9), x.shape[1:])

        def loss(params, x, given):
            given = jax.tree.map(
                lambda a, b: b if a is None else a, given, state, is_leaf=lambda a: a is None
            )
            y, after = in_shards(sublayer, mesh.seq)(params, x, ctx, given)
            kept = sum(jnp.sin(a).sum() for a in jax.tree.leaves(floats(after)))
            return (y * probe).sum() + weight * kept, (y, after)

        given = floats(state)
        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, given)
        return Results(*out, *gradients)

    def call(params, x, ctx, state=None, weight=1.0):
        args = params, x, ctx, state, jnp.float32(weight)
        if mesh.devices == 1:
            return results(*args)
        with jax.set_mesh(make_mesh(mesh)):
            return jax.device_get(results(*args))

    return call


@cache
def streaming(sublayer):
    """The arguments of a call in the middle of a text, whose state is that after LENGTH tokens."""
    c = case(sublayer, length=LENGTH)
    ones = jnp.ones((ROWS, LENGTH), jnp.int32)
    earlier = Context.of(
        70_000 - LENGTH + jnp.arange(LENGTH) * ones, ones, lengths=c.packed.lengths
    )
    before = sublayer.init_state(c.dims, ROWS, 2 * LENGTH)
    state = results(sublayer)(c.params, c.x[:, ::-1], earlier, before).after
    packed = Context.of(*documents(ROWS, LENGTH), before=ones[:, 0], lengths=c.packed.lengths)
    return c.params, c.x, packed, state


@cache
def expected(sublayer) -> tuple[Results, Results]:
    """What one device computes, and the unit of each array's error."""
    return of_one_device(sublayer, *streaming(sublayer))


def of_one_device(sublayer, *args) -> tuple[Results, Results]:
    return jax.device_get(results(sublayer)(*args)), rounding(results(sublayer), *args)


@pytest.mark.parametrize("sublayer", SUBLAYERS, ids=name)
def test_four_shards_equal_the_whole(sublayer):
    """From the middle of a text on: packed documents that end anywhere, and one that does not."""
    params, x, packed, state = streaming(sublayer)
    there = results(sublayer, Mesh(seq=4))
    assert_rounded(there(params, x, packed, state), *expected(sublayer))
    # what the first shard has seen reaches the last
    ones, positions = jnp.ones_like(packed.segments), 70_000 + jnp.arange(LENGTH)
    one = Context.of(positions * ones, ones, before=ones[:, 0], lengths=packed.lengths)
    args = params, x, one, state
    assert_rounded(there(*args), *of_one_device(sublayer, *args))


WITHOUT_STATE = (
    SoftmaxAttention(kv_heads=2, sink_logit=True, softcap=1.5),
    SoftmaxAttention(kv_heads=2, position=ALiBi(), softcap=1.5),
    SoftmaxAttention(position=XPos()),
    *(SoftmaxAttention(sparsity=s) for s in (Window(7), Window(7, sinks=3))),
    SoftmaxAttention(kv_heads=1, sparsity=ShiftedGroups(8)),
    SoftmaxAttention(sparsity=Strided(8)),
    SoftmaxAttention(kv_heads=2, sparsity=SelfExtend(8, group=4)),
)
"""Whose code is another without a state. In the others' a state of zeros takes its place."""


def without_state_equals_the_whole(sublayer, form=None):
    c = case(sublayer, length=LENGTH)
    positions = jnp.arange(LENGTH) + jnp.array([[0], [7]])
    ctx = Context(positions, lengths=c.packed.lengths)
    got = results(sublayer, Mesh(seq=4), form)(c.params, c.x, ctx)
    assert got.after is None
    # that a state of zeros, and the word that all is one document, change nothing are other laws
    one = Context.of(positions, jnp.ones((ROWS, LENGTH), jnp.int32), lengths=ctx.lengths)
    state = sublayer.init_state(c.dims, ROWS, 2 * LENGTH)
    whole, units = of_one_device(sublayer, c.params, c.x, one, state, 0.0)
    assert_rounded(*((r.y, r.params, r.x) for r in (got, whole, units)))


@pytest.mark.parametrize("sublayer", WITHOUT_STATE, ids=name)
def test_four_shards_equal_the_whole_without_a_state(sublayer):
    """Rows of one document."""
    without_state_equals_the_whole(sublayer)


@pytest.mark.parametrize("sublayer", [SoftmaxAttention()], ids=name)
def test_a_ring_of_four_equals_the_whole(sublayer, monkeypatch):
    """With so many KV heads, and rows called long."""
    monkeypatch.setattr(module, "GATHERED", 0)
    monkeypatch.delattr(module, "attention")  # which the gathered form cannot do without
    without_state_equals_the_whole(sublayer, "ring")


TRIED_ALREADY = tuple(
    sublayer.position for sublayer in SUBLAYERS if isinstance(sublayer, SoftmaxAttention)
)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s not in TRIED_ALREADY], ids=describe)
def test_position_schemes_mark_shards_as_the_whole(scheme):
    """Queries and keys of texts that differ in length; whose attention is that of other schemes."""
    keys = jax.random.split(jax.random.key(3), 2)
    q, k = (jax.random.normal(key, (ROWS, LENGTH, 2, 16)) for key in keys)
    positions, segments = documents(ROWS, LENGTH)
    assert scheme.slopes(2) is None
    assert scheme.decay(16) is None

    def marked(q, k, positions, lengths, shards):
        return scheme(q, k, Context(positions, lengths=lengths, shards=shards))

    args = q, k, positions, 130 + 30 * segments
    call = sharded(partial(marked, shards=Shards(4)), Shards(4), (SHARDED,) * 4, (SHARDED, SHARDED))
    with jax.set_mesh(make_mesh(Mesh(seq=4))):
        got = jax.device_get(jax.jit(call)(*args))
    for a, b in zip(got, jax.jit(partial(marked, shards=None))(*args), strict=True):
        assert_within(abs(a - b).max(), 1e-6 * abs(b).max())  # measured: no difference


@pytest.mark.slow
@pytest.mark.parametrize("sublayer", ALGORITHMS, ids=name)
def test_two_and_eight_shards_equal_the_whole(sublayer):
    """Outputs and the state after; shards of 20 tokens, fewer than many windows and blocks."""
    args, (whole, units) = streaming(sublayer), expected(sublayer)
    for count in (2, 8):
        with jax.set_mesh(make_mesh(Mesh(seq=count))):
            got = jax.device_get(jax.jit(in_shards(sublayer, count))(*args))
        assert_rounded(got, (whole.y, whole.after), (units.y, units.after))


@pytest.mark.slow
@pytest.mark.parametrize("sublayer", ALGORITHMS, ids=name)
def test_shards_beside_other_axes_equal_the_whole(sublayer):
    """Rows and parameters cut along fsdp, heads and feed-forward layers along model."""
    sizes = Mesh(fsdp=2, seq=2, model=2)
    mesh = make_mesh(sizes)

    def cut(tree, axes):
        """Along rows, and (axes = 2) along tokens; scalars are whole."""

        def put(a):
            spec = PartitionSpec(*BATCH[: min(a.ndim, axes)])
            return jax.device_put(a, NamedSharding(mesh, spec))

        return jax.tree.map(put, tree)

    params, x, ctx, state = streaming(sublayer)
    params = jax.device_put(params, shardings(params, mesh))
    args = params, cut(x, 2), cut(ctx, 2), cut(state, 1)
    assert any(not a.is_fully_replicated for a in jax.tree.leaves(params))
    assert_rounded(results(sublayer, sizes)(*args), *expected(sublayer))
