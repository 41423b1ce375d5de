"""What shards of a sequence say to each other, against the same on the whole of it."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lcx.parallel import seqpar
from lcx.parallel.mesh import Mesh, make_mesh
from lcx.parallel.seqpar import AXIS, REPLICATED, SHARDED, Affine, Shards, sharded
from lcx.types import Context

EACH = PartitionSpec(AXIS)
"""Results that differ from shard to shard, one behind the other."""


def on_shards(count, call, in_specs, out_specs, *args):
    with jax.set_mesh(make_mesh(Mesh(seq=count))):
        return jax.device_get(jax.jit(sharded(call, Shards(count), in_specs, out_specs))(*args))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_halo_is_what_lies_in_front(count):
    """Fewer tokens than a shard has, as many, more, and more than lie in front of any shard."""
    t, sizes = 5, (0, 1, 4, 5, 7, 10, 15, 22)
    x = normal(2, count * t, 3)
    before = [normal(2, n, 3, seed=1) for n in sizes]

    def call(x, before):
        return [seqpar.halo(x, b, Shards(count))[None] for b in before]

    got = on_shards(count, call, (SHARDED, REPLICATED), EACH, x, before)
    for n, halo, b in zip(sizes, got, before, strict=True):
        text = np.concatenate([b, x], axis=1)
        wanted = [text[:, i * t : i * t + n] for i in range(count)]
        np.testing.assert_array_equal(halo, wanted)


def test_halo_has_the_dtype_of_what_lies_before_the_sequence():
    x, before = jnp.ones((1, 4), bool), jnp.zeros((1, 3), bool)
    halo = on_shards(
        2, lambda x, b: seqpar.halo(x, b, Shards(2)), (SHARDED, REPLICATED), SHARDED, x, before
    )
    np.testing.assert_array_equal(halo, [[0, 0, 0, 0, 1, 1]])
    assert halo.dtype == bool


def test_halo_sends_gradients_back():
    """Each token's gradient is what the shards behind it make of it, and its own."""
    x, before, weight = normal(1, 8, 2), normal(1, 5, 2, seed=1), normal(4, 1, 5, 2, seed=2)

    def loss(x, before):
        halo = sharded(
            lambda x, b: seqpar.halo(x, b, Shards(4))[None], Shards(4), (SHARDED, REPLICATED), EACH
        )(x, before)
        return (halo * weight).sum()

    def plain(x, before):
        text = jnp.concatenate([before, x], axis=1)
        return sum((text[:, 2 * i : 2 * i + 5] * weight[i]).sum() for i in range(4))

    with jax.set_mesh(make_mesh(Mesh(seq=4))):
        got = jax.device_get(jax.jit(jax.grad(loss, (0, 1)))(x, before))
    for a, b in zip(got, jax.grad(plain, (0, 1))(x, before), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("compose", [seqpar.multiplied, seqpar.scaled])
def test_carry_is_a_fold_from_left_to_right(count, compose):
    """Matrices, which do not commute, so that the order counts; and elements."""
    own = Affine(normal(count, 3, 3), normal(count, 3, 3, seed=1))
    before = Affine(normal(3, 3, seed=2), normal(3, 3, seed=3))

    def call(before, own):
        own = jax.tree.map(lambda a: a[0], own)
        entering = seqpar.carry(compose, before, own, Shards(count))
        state = seqpar.entering(own, before.added, Shards(count), compose)
        after = seqpar.last(compose(entering, own), Shards(count))
        return jax.tree.map(lambda a: a[None], (entering, state)), after

    (entering, state), after = on_shards(
        count, call, (REPLICATED, EACH), (EACH, REPLICATED), before, own
    )
    np.testing.assert_array_equal(state, entering.added)
    folded = [before]
    for i in range(count):
        folded.append(compose(folded[-1], jax.tree.map(lambda a, i=i: a[i], own)))
    for i in range(count):
        for got, wanted in zip(entering, folded[i], strict=True):
            # measured: up to 4e-7 of the largest entry
            np.testing.assert_allclose(got[i], wanted, rtol=0, atol=3e-6 * abs(wanted).max())
    for got, wanted in zip(after, folded[-1], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-6 * abs(wanted).max())


def test_without_shards_nothing_moves():
    x, before = normal(1, 4, 2), normal(1, 3, 2, seed=1)
    np.testing.assert_array_equal(seqpar.halo(x, before, None), before)
    np.testing.assert_array_equal(seqpar.gather(x, None), x)
    np.testing.assert_array_equal(seqpar.last(x, None), x)
    one, two = (Affine(jnp.float32(a), jnp.float32(b)) for a, b in ((2, 1), (3, 5)))
    entering = seqpar.carry(seqpar.scaled, one, two, None)
    assert entering == one
    assert seqpar.entering(two, one.added, None) == 1
    assert seqpar.last(seqpar.scaled(entering, two), None) == (6, 8)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_balance_gives_each_shard_its_two_halves_and_restore_takes_them_back(count):
    x = np.arange(2 * count * 6, dtype=np.int32).reshape(2, -1)

    def call(x):
        worked = seqpar.to_zigzag(x, Shards(count))
        return worked[None], seqpar.from_zigzag(worked, Shards(count))

    worked, again = on_shards(count, call, (SHARDED,), (EACH, SHARDED), x)
    for i in range(count):
        tokens = np.concatenate(seqpar.zigzag_indices(i, x.shape[1] // count, Shards(count)))
        np.testing.assert_array_equal(worked[i], x[:, tokens])
    np.testing.assert_array_equal(again, x)


def test_halves_are_each_worked_on_once():
    for count in (2, 3, 8):
        worked = [half for i in range(count) for half in seqpar.zigzag_halves(i, Shards(count))]
        assert sorted(worked) == list(range(2 * count))


def test_last_gather_index_and_length():
    x = normal(2, 12, 3)

    def call(x):
        shards = Shards(4)
        found = seqpar.index(shards)[None], jnp.int32(seqpar.length(x.shape[1], shards))
        last = seqpar.last({"x": x[:, -1], "flag": x[:, -1] > 0}, shards)
        return last, seqpar.gather(x, shards)[None], *found

    last, gathered, index, length = on_shards(
        4, call, (SHARDED,), (REPLICATED, EACH, EACH, REPLICATED), x
    )
    np.testing.assert_array_equal(last["x"], x[:, -1])
    np.testing.assert_array_equal(last["flag"], x[:, -1] > 0)
    np.testing.assert_array_equal(gathered, [x] * 4)
    np.testing.assert_array_equal(index, range(4))
    assert length == 12


def test_ring_passes_on_to_the_next_shard_and_round():
    x = np.arange(4, dtype=np.int32)[:, None]

    def call(x):
        once = seqpar.ring(x, Shards(4))
        return once, reduce(lambda x, _: seqpar.ring(x, Shards(4)), range(3), once)

    once, home = on_shards(4, call, (EACH,), (EACH, EACH), x)
    np.testing.assert_array_equal(once[:, 0], [3, 0, 1, 2])
    np.testing.assert_array_equal(home, x)


@pytest.mark.parametrize("before", [None, 1, 2])
def test_documents_start_where_they_do_in_the_whole_sequence(before):
    """Also where a document begins with a shard, and where one goes on from before the text."""
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 3, 3], [2, 1, 1, 1, 1, 1, 1, 0]], jnp.int32)
    given = None if before is None else jnp.full(2, before, jnp.int32)

    def starts(segments, given, shards=None):
        return Context.of(jnp.zeros_like(segments), segments, given, shards=shards).starts

    got = on_shards(
        4,
        lambda *args: starts(*args, Shards(4)),
        (SHARDED, REPLICATED),
        SHARDED,
        *(segments, given),
    )
    np.testing.assert_array_equal(got, starts(segments, given))
