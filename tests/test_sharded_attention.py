"""Softmax attention of a sequence on several devices, against that of the whole in one place."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lcx.kernels import Kernels
from lcx.ops import sharded_attention as module
from lcx.ops.attention import Bias, attention
from lcx.ops.sharded_attention import sharded_attention
from lcx.ops.tiles import Marks, Plan, Scoring, Tiles, Tiling
from lcx.parallel import seqpar
from lcx.parallel.mesh import BATCH, Mesh, make_mesh
from lcx.parallel.seqpar import SHARDED, Shards, sharded
from lcx.positions import XPos

LENGTH, SLOPES = 160, (0.5, 0.25, 2.0**-3, 2.0**-8)


@cache
def inputs(length=LENGTH, H=4, G=2, K=8, V=12):
    """q, k, v, the gradient of the output; documents and positions."""
    rng = np.random.default_rng(0)
    shapes = (2, length, H, K), (2, length, G, K), (2, length, G, V), (2, length, H, V)
    arrays = tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    # uneven documents: some within a shard, some over several, one of a single token
    ends = np.array([[3, 90, 91, 130], [45, 80, 110, 159]])[:, :, None] * length // LENGTH
    segments = (np.arange(length) >= ends).sum(axis=1)
    positions = 2**24 + np.cumsum(rng.integers(1, 4, (2, length)), axis=1)
    return arrays, jnp.asarray(segments, jnp.int32), jnp.asarray(positions, jnp.int32)


def output_and_gradients(form, q, k, v, do, *marks):
    (o, lse), pull = jax.vjp(lambda q, k, v: form(q, k, v, *marks), q, k, v)
    dlse = jnp.sin(jnp.arange(lse.size, dtype=lse.dtype)).reshape(lse.shape)
    return dict(zip(("o", "lse", "dq", "dk", "dv"), (o, lse, *pull((do, dlse))), strict=True))


@cache
def reference(packed, slopes, softcap, decay, **shape):
    def form(q, k, v, segments, positions):
        return attention(
            *(q, k, v),
            softcap=softcap,
            segments=(segments, segments) if packed else None,
            bias=None if slopes is None else Bias(slopes, (positions, positions)),
            decay=None if decay is None else np.array(decay),
            kernels=Kernels("reference"),
        )

    arrays, *marks = inputs(**shape)
    return jax.device_get(jax.jit(partial(output_and_gradients, form))(*arrays, *marks))


def in_shards(count, exchange, packed, slopes, softcap, decay):
    def form(q, k, v, segments, positions):
        return sharded_attention(
            *(q, k, v),
            shards=Shards(count),
            softcap=softcap,
            segments=segments if packed else None,
            slopes=slopes,
            positions=positions,
            decay=None if decay is None else np.array(decay),
            exchange=exchange,
        )

    return sharded(form, Shards(count), (SHARDED,) * 5, (SHARDED, SHARDED))


def check(count, exchange, packed=True, slopes=None, softcap=None, decay=None, **shape):
    """Measured: errors of up to 6e-7 of an array's largest entry."""
    arrays, *marks = inputs(**shape)
    options = packed, slopes, softcap, decay
    form = in_shards(count, exchange, *options)
    with jax.set_mesh(make_mesh(Mesh(seq=count))):
        got = jax.device_get(jax.jit(partial(output_and_gradients, form))(*arrays, *marks))
    assert_close(got, reference(*options, **shape))


def assert_close(got, expected):
    assert all(np.isfinite(x).all() for x in got.values())
    errors = {n: abs(got[n] - x).max() / max(abs(x).max(), 1) for n, x in expected.items()}
    assert max(errors.values()) < 5e-6, errors


FORMS = ("gather", "ring")


@pytest.mark.parametrize(("count", "exchange"), [(2, "ring"), (8, "ring"), (8, "gather")])
def test_equals_the_whole(count, exchange):
    check(count, exchange)


@pytest.mark.parametrize("exchange", FORMS)
@pytest.mark.parametrize(
    ("packed", "slopes", "softcap", "G"), [(False, None, None, 4), (True, SLOPES, 1.5, 1)]
)
def test_options(exchange, packed, slopes, softcap, G):
    """One document and as many KV heads as heads; and everything, with a single KV head."""
    check(4, exchange, packed, slopes, softcap, G=G)


def test_decaying_products():
    check(4, None, decay=tuple(XPos().decay(8).tolist()))


def test_shards_of_an_odd_length_gather(monkeypatch):
    monkeypatch.setattr(module, "GATHERED", 0)
    check(8, None, length=8 * 5, G=4)


def traced(exchange, decay=None, count=8, **shape):
    """What is run on each shard, as text."""
    arrays, *marks = inputs(**shape)
    form = in_shards(count, exchange, True, None, None, decay)
    with jax.set_mesh(make_mesh(Mesh(seq=count))):
        return str(jax.make_jaxpr(form)(*arrays[:3], *marks))


@pytest.mark.parametrize(("G", "gathers"), [(4, False), (1, True)])
def test_the_form_chosen_by_itself(G, gathers, monkeypatch):
    """Small rows are gathered; long ones if KV heads are few beside the shard's queries."""
    assert "all_gather" in traced(None, G=G)
    monkeypatch.setattr(module, "GATHERED", 0)
    assert ("all_gather" in traced(None, G=G)) == gathers


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"exchange": "ring", "length": 40}, "shards of 5 tokens have no halves"),
        ({"exchange": "ring", "decay": (-0.1,) * 8}, "the ring cannot run here: decays are"),
    ],
)
def test_what_cannot_run_says_why(asked, message):
    with pytest.raises(ValueError, match=message):
        traced(**asked)


@pytest.mark.parametrize("exchange", FORMS)
def test_beside_other_axes(exchange):
    """Rows and heads are cut along axes that the compiler has in hand."""
    mesh = make_mesh(Mesh(fsdp=2, seq=2, model=2))
    arrays, *marks = inputs()
    heads = NamedSharding(mesh, PartitionSpec(*BATCH, "model"))
    arrays = [jax.device_put(a, heads) for a in arrays]
    marks = [jax.device_put(m, NamedSharding(mesh, BATCH)) for m in marks]
    form = in_shards(2, exchange, True, None, None, None)
    with jax.set_mesh(mesh):
        got = jax.device_get(jax.jit(partial(output_and_gradients, form))(*arrays, *marks))
    assert_close(got, reference(True, None, None, None))


class TestBalance:
    """Every shard computes as many tiles of scores as the others, and of a ring in each step."""

    COUNT, SHARD, TILE = 8, 2048, 128

    def tiles(self, first, queries, keys):
        """How many tiles of scores are visited, of queries from index `first` of the keys on."""
        tiling = Tiling(1, self.TILE, self.TILE, unroll=False)
        plan = Plan(Scoring(1.0, None, None), None, tiling)
        geometry = Tiles(plan, first, Marks(None, None), (queries, 1, 1, 8), (keys, 1, 8))
        return geometry.for_queries(
            lambda t, n: geometry.for_keys(t, lambda masked, j, n: n + 1, n), 0
        )

    def visited(self, monkeypatch):
        """[shard, step of the ring]."""
        shards = Shards(self.COUNT)

        @jax.jit
        def of(shard, step):
            monkeypatch.setattr(seqpar, "index", lambda shards: shard)
            return self.tiles(module.last_seen(shards, step, self.SHARD), self.SHARD, self.SHARD)

        return np.array([[of(i, s) for s in range(self.COUNT)] for i in range(self.COUNT)])

    def test_ring(self, monkeypatch):
        visited = self.visited(monkeypatch)
        # two halves' own triangles and a square, then two squares
        square = (self.SHARD // 2 // self.TILE) ** 2
        triangle = (square + self.SHARD // 2 // self.TILE) // 2
        assert (visited[:, 0] == 2 * triangle + square).all()
        assert (visited[:, 1:] == 2 * square).all()
        # no tile is left out: together they are the whole triangle
        whole = self.COUNT * self.SHARD
        assert visited.sum() == self.tiles(jnp.int32(0), whole, whole)

    def test_gather(self):
        workers = (
            seqpar.zigzag_indices(i, self.SHARD, Shards(self.COUNT)) for i in range(self.COUNT)
        )
        whole = self.COUNT * self.SHARD
        tiles = jax.jit(partial(self.tiles, queries=self.SHARD, keys=whole))
        visited = [int(tiles(jnp.concatenate(w))) for w in workers]
        assert max(visited) == min(visited)

    def test_without_it_the_last_shard_would_do_many_times_as_much_as_the_first(self, monkeypatch):
        monkeypatch.setattr(seqpar, "zigzag_halves", lambda i, shards: (2 * i, 2 * i + 1))
        visited = self.visited(monkeypatch).sum(axis=1)
        assert visited[-1] > 14 * visited[0]
