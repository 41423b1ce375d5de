"""A cache in several buffers: pieces that end at their borders, span them and follow each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.positions import ALiBi, RoPE, XPos
from lcx.sparsity import Full, Request, SelfExtend, growing
from lcx.sparsity.growing import SMALLEST, sizes
from lcx.types import Context, take_rows

BUFFERS = [5, 3, 16, 17]
T, HEADS, GROUPS, WIDTH = sum(BUFFERS), 4, 2, 8


def texts():
    """Queries, keys and values of two rows; the first is two documents."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((2, T, heads, WIDTH)).astype(np.float32))
        for heads in (HEADS, GROUPS, GROUPS)
    )
    at, begins = np.arange(T), np.array([[7], [T]])
    segments = jnp.asarray(1 + (at >= begins), jnp.int32)
    positions = jnp.asarray(np.where(at >= begins, at - begins, at), jnp.int32)
    return q, k, v, Context.of(positions, segments, lengths=jnp.full((2, T), T))


@partial(jax.jit, static_argnums=(0, 1))
def read(sparsity, position, q, k, v, ctx, state=None):
    return sparsity(Request(q, k, v, ctx, position, state=state))


@pytest.fixture
def empty(monkeypatch):
    monkeypatch.setattr(growing, "sizes", lambda capacity, slot: BUFFERS)
    return lambda sparsity: sparsity.init_state(2, T, GROUPS, WIDTH, jnp.float32)


def swapped(tree):
    return take_rows(tree, jnp.array([1, 0]))


@pytest.mark.parametrize(
    ("sparsity", "position"),
    [(Full(), ALiBi()), (Full(), XPos()), (SelfExtend(6, 3), RoPE())],
    ids=("Full, ALiBi", "Full, XPos", "SelfExtend"),
)
def test_pieces_equal_the_whole(sparsity, position, empty):
    """Few queries and many, in two orders; half-way the rows change places."""
    whole = read(sparsity, position, *texts())
    for pieces in (1, 10, 4, 4, 1, 4, 1, 10, 4, 1, 1), (4, 4, 10, 4, 4, 4, 1, 4, 4, 1, 1):
        state, begin, given, wanted = empty(sparsity), 0, texts(), whole
        for length in pieces:
            if begin in (19, 22):
                state, given, wanted = map(swapped, (state, given, wanted))
            here = slice(begin, begin + length)
            some = jax.tree.map(lambda a: a[:, here], given)  # noqa: B023
            o, lse, state = read(sparsity, position, *some, state)
            # measured: 1e-6, sums in other orders
            np.testing.assert_allclose(o, wanted.o[:, here], atol=4e-6)
            np.testing.assert_allclose(lse, wanted.lse[:, here], atol=4e-6)
            begin += length
        assert begin == T


def test_buffers_that_no_query_reaches_are_not_read(empty):
    """A NaN spreads through any product: where none comes out, none was read."""
    state = empty(Full())
    later = [jax.tree.map(lambda a: a + jnp.nan, buffer) for buffer in state.buffers[1:]]
    state = state._replace(buffers=(state.buffers[0], *later))
    one = jax.tree.map(lambda a: a[:, :1], texts())
    for _ in range(BUFFERS[0]):
        o, _, state = read(Full(), ALiBi(), *one, state)
        assert np.isfinite(o).all()


@pytest.mark.parametrize("capacity", [1, 128, 1000, 1024, 16384])
@pytest.mark.parametrize("slot", [8, 2**11, 2**14])
def test_buffers_have_room_for_all_and_none_is_small(capacity, slot):
    slots = sizes(capacity, slot)
    assert sum(slots) == capacity
    assert len(slots) <= 16
    # the last has what is left
    assert all(n >= 128 and n * slot >= SMALLEST for n in slots[:-1])
