"""The law of lowering: every sublayer lowers for a large mesh, and says only what it must.

Collectives are read from the text of compiled programs, of a forward and a backward pass together.
"""

import math
import re
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from lcx.block import Block
from lcx.experiment import Experiment
from lcx.layers import RWKVChannelMix
from lcx.mixers import GatedConv, SoftmaxAttention
from lcx.model import LM
from lcx.optim import Muon
from lcx.parallel.mesh import BATCH, Mesh, make_mesh, shardings
from lcx.sparsity import ShiftedGroups, Window
from lcx.training.loop import fresh_state, make_step
from lcx.types import Batch, Policy
from tests.contracts.cases import ALGORITHMS, MIXER_CASES, ROWS, WIDTH, case, name
from tests.contracts.test_shards import LENGTH, in_shards


def both_passes(sublayer, count):
    """(params, x, ctx, dy) -> y and the gradients."""

    def call(params, x, ctx, dy):
        def forward(params, x):
            return in_shards(sublayer, count)(params, x, ctx, None)[0]

        y, pull = jax.vjp(forward, params, x)
        return y, pull(dy)

    return call


@pytest.mark.parametrize("sublayer", ALGORITHMS, ids=name)
def test_lowers_for_256_devices_that_are_not_there(sublayer):
    sizes = asdict(Mesh(fsdp=4, seq=16, model=4))
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))
    rows, length = 8, 16 * 64

    def cut(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, BATCH))

    c = case(sublayer, length=LENGTH)
    params = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        c.params,
        shardings(c.params, mesh),
    )
    x = cut((rows, length, WIDTH), jnp.float32)
    ctx = jax.tree.map(lambda a: cut((rows, length), a.dtype), c.packed)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(both_passes(sublayer, sizes["seq"])).trace(params, x, ctx, x)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "num_partitions = 256" in text
    assert 'manual_axes={"seq"}' in text
    assert f"{rows}x{length // 16}x{WIDTH}" in text


COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-broadcast",
    "collective-permute",
)
CALL = re.compile(rf"= (\S.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\((.*)")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
PAIRS = re.compile(r"source_target_pairs=\{(.*?\})\}")


class Collective(NamedTuple):
    kind: str
    made: list[tuple[str, tuple[int, ...]]]
    """Dtypes and shapes."""
    hops: set[int]
    """How many shards further each of a permutation's arrays goes."""

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for _, shape in self.made]


def collectives(sublayer) -> list[Collective]:
    """Of both passes on 8 devices, on packed documents."""
    c = case(sublayer, length=LENGTH)
    with jax.set_mesh(make_mesh(Mesh(seq=8))):
        compiled = jax.jit(both_passes(sublayer, 8)).lower(c.params, c.x, c.packed, c.x).compile()
    found = []
    for made, kind, rest in CALL.findall(compiled.as_text()):
        arrays = [(t, tuple(map(int, n.split(","))) if n else ()) for t, n in ARRAY.findall(made)]
        pairs = PAIRS.search(rest)
        pairs = re.findall(r"(\d+),(\d+)", pairs.group(1)) if pairs else []
        found.append(Collective(kind, arrays, {int(b) - int(a) for a, b in pairs}))
    return found


def sent(sublayer) -> list[Collective]:
    """The permutations; of other collectives there is but the sum of each parameter's gradient."""
    found = collectives(sublayer)
    assert {c.kind for c in found} == {"all-reduce", "collective-permute"}
    summed = Counter(size for c in found if c.kind == "all-reduce" for size in c.sizes)
    assert summed <= Counter(a.size for a in jax.tree.leaves(case(sublayer, length=LENGTH).params))
    return [c for c in found if c.kind == "collective-permute"]


RECURRENT = [h for h in ALGORITHMS if h in MIXER_CASES and not isinstance(h, SoftmaxAttention)]


@pytest.mark.parametrize("sublayer", RECURRENT, ids=name)
def test_a_recurrence_sends_summaries_no_larger_than_its_state(sublayer):
    """However long the text: nothing is gathered, forward or backward."""
    c = case(sublayer, length=LENGTH)
    state = jax.eval_shape(lambda: sublayer.init_state(c.dims, ROWS, LENGTH))
    largest = max(a.size for a in jax.tree.leaves(state))
    permutations = sent(sublayer)
    assert all(size <= largest for p in permutations for size in p.sizes)
    # one shard further, then two, then four; and back with gradients
    assert set.union(*(p.hops for p in permutations)) <= {1, 2, 4, -1, -2, -4}


WINDOWED = (
    GatedConv(),
    RWKVChannelMix(),
    SoftmaxAttention(sparsity=Window(7)),
    SoftmaxAttention(kv_heads=1, sparsity=ShiftedGroups(8)),
)


@pytest.mark.parametrize("sublayer", WINDOWED, ids=name)
def test_a_window_speaks_to_neighbours_alone(sublayer):
    """But for groups, of which each row says how many tokens of a document lie in front."""
    permutations = sent(sublayer)
    ranks = [("s32", (ROWS,))]
    assert all(p.hops in ({1}, {-1}) or p.made == ranks for p in permutations)
    assert any(p.hops == {1} for p in permutations)
    assert any(p.hops == {-1} for p in permutations)


def test_what_gathers_is_seen_to():
    """The law's reader finds what is there."""
    kinds = {c.kind for c in collectives(SoftmaxAttention(kv_heads=1))}
    assert "all-gather" in kinds


@pytest.mark.parametrize("sublayer", ALGORITHMS, ids=name)
def test_every_product_of_a_step_is_as_exact_as_the_policy_says(sublayer):
    """In the forward and the backward pass, those written by hand too, and in the optimizer."""
    block = Block(sublayer) if sublayer in MIXER_CASES else Block(GatedConv(), sublayer)
    model = LM(64, WIDTH, (block,), 1)
    optimizer = Muon().transform(10)
    tokens: Any = jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)
    batch = Batch(tokens, tokens, tokens, targets=tokens)
    for products, word in ((None, "HIGHEST"), ("tensorfloat32", "HIGH")):
        of = replace(model, policy=Policy(products=products))
        experiment = replace(Experiment(), model=of)
        state = jax.eval_shape(partial(fresh_state, experiment, optimizer), jax.random.key(0))
        text = jax.jit(make_step(experiment, optimizer)).lower(state, batch).as_text()
        said = re.findall(
            r"stablehlo\.dot_general.*?(?:precision = \[(\w+), \w+\])?[ :]*\(tensor", text
        )
        assert len(said) > 10
        # running sums of decays are fp32 whatever a policy says (`lcx.ops.chunks.running_sum`)
        assert set(said) <= {word, "HIGHEST"}
        assert Counter(said)[word] > len(said) / 2
