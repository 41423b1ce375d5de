"""Position schemes against their equations written out in float64, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcx.block import Block
from lcx.experiment import Train
from lcx.mixers import LinearAttention, RetNet, SoftmaxAttention
from lcx.model import LM
from lcx.ops.attention import Bias, attention
from lcx.positions import (
    ALiBi,
    DynamicNTK,
    DynamicYaRN,
    Learned,
    LongRoPE,
    NoPE,
    PoSE,
    Randomised,
    RoPE,
    XPos,
    YaRN,
)
from lcx.positions.training import redraw
from lcx.sparsity import Fixed, Full, Request, SelfExtend, ShiftedGroups, Strided, TopBlocks, Window
from lcx.spec import describe
from lcx.types import Batch, Context, Dims

T, H, K = 700, 2, 16


def texts(length: int = T):
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.standard_normal((1, length, H, K)), jnp.float32) for _ in range(3))


def softmax(scores, v):
    """[H T S] scores, of which causality hides some, and values [1 S H V], in float64."""
    past = np.tril(np.ones(scores.shape[1:], bool))
    scores = np.where(past, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.einsum("hts,shv->thv", p, np.asarray(v[0], np.float64))


def turned(x, positions, theta: float = 1e4, interleaved: bool = False):
    """Rotated as complex numbers, in float64."""
    x = np.asarray(x[0], np.float64)
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else np.split(x, 2, axis=-1)
    angle = positions[:, None] * theta ** (-np.arange(0, K, 2) / K)
    return (first + 1j * second) * np.exp(1j * angle)[:, None]


def sparse(sparsity, position, start: int = 0):
    q, k, v = texts()
    ctx = Context(start + jnp.arange(T)[None])
    return jax.jit(lambda *qkv: sparsity(Request(*qkv, ctx, position)).o)(q, k, v)


@pytest.mark.parametrize("start", [0, 2**24 + 1])
def test_alibi_is_a_bias_on_distance(start):
    """At positions that fp32 cannot tell apart, too."""
    q, k, v = texts()
    distance = np.arange(T)[:, None] - np.arange(T)
    slopes = np.array([2.0**-4, 2.0**-8])
    products = np.einsum("thk,shk->hts", *(np.asarray(x[0], np.float64) for x in (q, k)))
    expected = softmax(products / 4 - slopes[:, None, None] * distance, v)
    np.testing.assert_allclose(sparse(Full(), ALiBi(), start)[0], expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [Strided(32), ShiftedGroups(64)], ids=describe)
def test_alibi_under_a_sparsity_is_the_same_bias_on_fewer_keys(sparsity):
    """Whole, and in pieces with a state."""
    q, k, v = texts()
    at = np.arange(T)
    distance = at[:, None] - at
    own, shifted = at // 64, (at + 32) // 64
    groups = np.stack([g[:, None] == g for g in (own, shifted)])
    strides = (distance < 32) | (distance % 32 == 0)
    seen = groups if isinstance(sparsity, ShiftedGroups) else np.stack([strides] * 2)
    products = np.einsum("thk,shk->hts", *(np.asarray(x[0], np.float64) for x in (q, k)))
    slopes = np.array([2.0**-4, 2.0**-8])[:, None, None]
    scores = np.where(seen, products / 4 - slopes * distance, -np.inf)
    expected = softmax(scores, v)
    np.testing.assert_allclose(sparse(sparsity, ALiBi())[0], expected, atol=2e-6)
    state = sparsity.init_state(1, T, H, K, jnp.float32)
    outputs = []
    for begin, end in ((0, 1), (1, 40), (40, 333), (333, T)):
        ctx = Context(jnp.arange(begin, end)[None])
        piece = (x[:, begin:end] for x in (q, k, v))
        o, _, state = sparsity(Request(*piece, ctx, ALiBi(), state=state))
        outputs.append(o)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1)[0], expected, atol=2e-6)


def test_xpos_is_equation_11():
    q, k, v = texts()
    at = np.arange(T)
    zeta = (np.arange(0, K, 2) / K + 0.4) / 1.4
    grown = zeta ** ((at[:, None] - at) / 512)[..., None]
    a, b = (turned(x, at, interleaved=True) for x in (q, k))
    scores = np.einsum("thp,shp,tsp->hts", a, b.conj(), grown, optimize=True).real / 4
    np.testing.assert_allclose(sparse(Full(), XPos())[0], softmax(scores, v), atol=2e-6)


def test_xpos_refuses_more_tokens_than_fp32_holds():
    q = jax.ShapeDtypeStruct((1, 40_000, 1, K), jnp.float32)
    with pytest.raises(ValueError, match=r"At most 32[0-9]{3} at once"):
        jax.eval_shape(lambda q: attention(q, q, q, decay=XPos().decay(K)), q)


def test_self_extend_shares_distances_beyond_its_neighbours():
    near, group = 100, 8
    q, k, v = texts()
    at = np.arange(T)
    distance = at[:, None] - at
    far = at[:, None] // group + near - near // group - at // group
    relative = np.where(distance < near, distance, far)
    a, b = (turned(x, np.zeros(T)) for x in (q, k))
    spin = np.exp(1j * relative[..., None] * 1e4 ** (-np.arange(0, K, 2) / K))
    scores = np.einsum("thp,shp,tsp->hts", a, b.conj(), spin, optimize=True).real / 4
    got = sparse(SelfExtend(near, group), RoPE())
    np.testing.assert_allclose(got[0], softmax(scores, v), atol=3e-6)
    assert relative.max() == 699 // 8 + 100 - 100 // 8


def test_self_extend_with_a_group_of_one_is_full():
    got, expected = sparse(SelfExtend(50, 1), RoPE()), sparse(Full(), RoPE())
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_dynamic_frequencies_follow_each_token_s_own_text():
    position = RoPE(scaling=DynamicYaRN(original=64))
    q, k, _ = texts(40)
    lengths = jnp.where(jnp.arange(40) < 15, 60, 300)[None]
    mixed = position(q, k, Context(jnp.arange(40)[None], lengths=lengths))
    for length, where in ((60, slice(15)), (300, slice(15, 40))):
        alone = RoPE(scaling=YaRN(max(length / 64, 1.0), original=64))
        for a, b in zip(mixed, alone(q, k, Context(jnp.arange(40)[None])), strict=True):
            # of numbers to 3, turned at frequencies in fp32; measured: 3.5e-6
            # measured: 3.7e-6
            np.testing.assert_allclose(a[:, where], b[:, where], atol=1.5e-5)


def test_a_model_s_state_knows_how_long_its_texts_become():
    """A text in pieces is read at its own length from the start."""
    mixer = SoftmaxAttention(heads=2, position=RoPE(scaling=DynamicNTK(original=16)))
    model = LM(vocab=11, width=16, pattern=(Block(mixer),), repeats=1)
    params = jax.tree.map(lambda a: 3 * a, model.init(jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (2, 48), 0, 11)
    whole = model(params, Batch(tokens)).x
    state = model.init_state(2, 64, jnp.full(2, 48, jnp.int32))
    first, state, _ = model(params, Batch(tokens[:, :7]), state)
    second, state, _ = model(params, Batch(tokens[:, 7:]), state)
    # measured: 2e-5, with weights so large that the scheme shows
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=5e-5)
    short = model.hidden(params, Batch(tokens, lengths=jnp.full((2, 48), 16))).x
    assert np.abs(model.logits(params, short) - whole).max() > 1e-3


def learned(factor: float) -> tuple[LM, LM]:
    block = Block(SoftmaxAttention(heads=2, position=NoPE()))
    model = LM(vocab=11, width=16, pattern=(block,), repeats=1, positions=Learned(8))
    return model, replace(model, positions=Learned(8, factor))


def test_learned_vectors_lie_between_those_of_a_shorter_training():
    with nnx.use_eager_sharding(False):
        table = Learned(8).init(Dims(4), nnx.Rngs(0))
    rows = np.asarray(table.table[...])
    positions = jnp.arange(17)[None]
    got = np.asarray(Learned(8, factor=2.0)(table, positions))[0]
    np.testing.assert_array_equal(got[0:16:2], rows)
    np.testing.assert_allclose(got[1:15:2], (rows[:-1] + rows[1:]) / 2, atol=1e-7)
    np.testing.assert_array_equal(got[15], rows[7])  # beyond the last row there is no other
    assert np.isnan(got[16]).all()


def test_learned_positions_tell_a_model_the_order():
    model, stretched = learned(2.0)
    params = model.init(jax.random.key(0))
    params.positions.table[...] = 10 * params.positions.table[...]
    tokens = jnp.zeros((1, 8), jnp.int32)  # which a model without positions cannot tell apart
    logits = model(params, Batch(tokens)).x
    assert np.ptp(np.asarray(logits), axis=1).max() > 1e-2
    at_twice = stretched(params, Batch(tokens, 2 * jnp.arange(8)[None])).x
    np.testing.assert_allclose(at_twice, logits, atol=1e-6)


@pytest.mark.parametrize("scheme", [Randomised(300), PoSE(300), PoSE(300, pieces=5)])
def test_training_positions_keep_the_order_and_reach_far(scheme):
    positions = np.tile(np.arange(40, dtype=np.int32), (50, 1))
    segments = np.ones((50, 40), np.int32)
    segments[:, 30:] = 2
    segments[0, 35:] = 0
    drawn = redraw(scheme, np.random.default_rng(3), positions, segments)
    again = redraw(scheme, np.random.default_rng(3), positions, segments)
    np.testing.assert_array_equal(drawn, again)
    np.testing.assert_array_equal(drawn[0, 35:], positions[0, 35:])
    for part in (drawn[:, :30], drawn[1:, 30:]):
        steps = np.diff(part)
        assert steps.min() >= 1
        assert part.min() >= 0
        assert 250 < part.max() < 300
        if isinstance(scheme, PoSE):
            assert (part[:, 0] == 0).all()
            assert ((steps > 1).sum(axis=1) <= scheme.pieces - 1).all()
        else:
            assert steps.mean() > 3


def test_a_document_of_one_token_can_be_placed():
    assert PoSE(9, pieces=3).draw(np.random.default_rng(0), 1).tolist() == [0]
    assert Randomised(5).draw(np.random.default_rng(0), 5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ALiBi(bias_max=0.0), "bias_max must be positive"),
        (lambda: XPos(theta=1.0), "theta must be finite and greater than 1"),
        (lambda: XPos(gamma=-1.0), "gamma must be positive"),
        (lambda: DynamicNTK(64, factor=0.5), "factor must be at least 1"),
        (lambda: DynamicNTK(0), "original must be at least 1"),
        (lambda: DynamicYaRN(64, beta_fast=1.0), "beta_slow must be positive and below beta_fast"),
        (lambda: DynamicYaRN(6), "original length of 6"),
        (lambda: LongRoPE((1.0,), (0.0,), 64, 4.0), "factors of long must all be positive"),
        (lambda: LongRoPE((1.0,), (1.0,), 64, 0.5), "factor must be at least 1"),
        (lambda: LongRoPE((1.0,), (1.0,), 1, 4.0), "original must be at least 2"),
        (lambda: LongRoPE((1.0,), (1.0,), 64, 4.0, -1.0), "attention_factor must be positive"),
        (lambda: Learned(0), "length must be at least 1"),
        (lambda: Learned(8, 0.5), "factor must be at least 1"),
        (lambda: Randomised(0), "longest must be at least 1"),
        (lambda: PoSE(64, pieces=1), "pieces must be at least 2"),
        (lambda: SelfExtend(0), "neighbours must be at least 1"),
        (lambda: Train(length=64, positions=PoSE(32)), "positions below 32 do not suffice"),
    ],
)
def test_what_makes_no_sense_is_refused_when_written(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("half", "message"),
    [
        (
            SoftmaxAttention(position=RoPE(scaling=LongRoPE((1.0,), (2.0,), 64, 4.0))),
            "1 factors in short, for 4 pairs of 8",
        ),
        (SoftmaxAttention(heads=32, position=XPos()), "heads of 1 are odd"),
        (LinearAttention(position=ALiBi()), "LinearAttention cannot carry ALiBi"),
        (RetNet(position=XPos()), "RetNet cannot carry XPos"),
        (LinearAttention(position=RoPE(scaling=DynamicYaRN(64))), "normaliser is not rotated"),
        (SoftmaxAttention(position=ALiBi(), sparsity=TopBlocks()), "TopBlocks cannot carry ALiBi"),
        (SoftmaxAttention(position=ALiBi(), sparsity=Fixed()), "Fixed cannot carry ALiBi"),
        (SoftmaxAttention(position=XPos(), sparsity=SelfExtend()), "SelfExtend cannot carry XPos"),
        (SoftmaxAttention(position=XPos(), sparsity=Strided()), "XPos decays with the tokens"),
        (SoftmaxAttention(position=XPos(), sparsity=Window(8, 2)), "XPos decays with the tokens"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_made(half, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: half.init(Dims(32), nnx.Rngs(0)))


def test_a_bias_must_fit_the_queries_and_keys():
    q, k, v = texts(9)
    at = jnp.arange(9)[None]
    with pytest.raises(ValueError, match="bias must have 2 slopes"):
        attention(q, k, v, bias=Bias((0.5,), (at, at)))
    with pytest.raises(ValueError, match=r"positions of shapes \(1, 9\)"):
        attention(q, k, v, bias=Bias((0.5, 0.25), (at, at[:, :4])))
    own = jnp.zeros((1, 9), jnp.int32)
    with pytest.raises(ValueError, match="queries must be consecutive"):
        attention(q, k, v, offset=own, decay=XPos().decay(K))
