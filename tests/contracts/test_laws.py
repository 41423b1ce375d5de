"""The laws that every half of a block keeps, outputs and gradients, in fp32.

A new entry of `MIXERS` or `CHANNELS` is tried here without another line. The laws of
sharding and of lowering have files of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.mixers import (
    GLA,
    RGLRU,
    RWKV5,
    RWKV6,
    RWKV7,
    DeltaNet,
    GatedConv,
    GatedDeltaNet,
    Mamba2,
    RetNet,
)
from lcx.sparsity import TopBlocks
from lcx.types import Context
from tests.bounds import assert_rounded, assert_within, rounding
from tests.contracts.cases import (
    ALGORITHMS,
    HALVES,
    LENGTH,
    MIXER_CASES,
    ROWS,
    case,
    gradients_of,
    in_pieces,
    name,
    rms_error,
    whole,
    with_references,
)

every_half = pytest.mark.parametrize("half", HALVES, ids=name)
every_mixer = pytest.mark.parametrize("half", MIXER_CASES, ids=name)


def chooses_decay(half) -> bool:
    """Whether the tokens choose how fast the past is forgotten."""
    return isinstance(half, GLA | RWKV6 | RWKV7 | Mamba2 | GatedDeltaNet | RGLRU)


def normalises(half) -> bool:
    """Whether each head's output is divided by its own size, however small that is."""
    return isinstance(half, RetNet | GLA | RWKV5 | RWKV6 | RWKV7 | DeltaNet | GatedDeltaNet)


def chooses_keys(half) -> bool:
    """Whether rounding may change which keys a query sees."""
    return isinstance(getattr(half, "sparsity", None), TopBlocks)


def context(half, packed: bool) -> Context:
    c = case(half).packed
    return c if packed else Context.of(jnp.arange(LENGTH)[None] + jnp.array([[0], [7]]))


@every_mixer
def test_parity_fast_form_equals_the_plain_one(half, monkeypatch):
    c = case(half)
    args = c.params, c.x, c.packed
    fast = whole(half)(*args)
    # a convolution of four taps is its own plain form
    assert with_references(half, monkeypatch) or isinstance(half, GatedConv)
    plain = gradients_of(lambda p, x, ctx: half(p, x, ctx)[0])(*args)
    assert_rounded(fast, plain, rounding(whole(half), *args))


@every_half
def test_segments_a_row_that_is_one_document_needs_none(half):
    c, ctx = case(half), context(half, packed=False)
    said = Context.of(ctx.positions, jnp.ones((ROWS, LENGTH), jnp.int32))
    without, with_ = (whole(half)(c.params, c.x, context) for context in (ctx, said))
    assert_rounded(without, with_, rounding(whole(half), c.params, c.x, said))


CUTS = (1, 7, 86)
"""A single token, a piece shorter than most windows and chunks, and longer ones."""


@every_half
def test_split_pieces_with_a_state_equal_one_call(half):
    c = case(half)
    pieces = gradients_of(lambda p, x, ctx: in_pieces(half, p, x, ctx, c.dims, CUTS))
    args = c.params, c.x, c.packed
    assert_rounded(pieces(*args), whole(half)(*args), rounding(whole(half), *args))


@every_half
def test_split_pieces_of_one_document_equal_one_call(half):
    c, ctx = case(half), context(half, packed=False)
    args = c.params, c.x, ctx
    y = jax.jit(lambda p, x, ctx: in_pieces(half, p, x, ctx, c.dims, CUTS))(*args)
    assert_rounded(y, whole(half)(*args).y, rounding(whole(half), *args).y)


@every_half
def test_split_token_by_token_decodes_the_same(half):
    c = case(half)
    step = jax.jit(lambda p, x, ctx, state: half(p, x, ctx, state))
    state = half.init_state(c.dims, c.x.shape[0], LENGTH)
    outputs = []
    for t in range(LENGTH):
        token = jax.tree.map(lambda a, t=t: a[:, t : t + 1], c.packed)
        y, state = step(c.params, c.x[:, t : t + 1], token, state)
        outputs.append(y)
    args = c.params, c.x, c.packed
    y = jnp.concatenate(outputs, axis=1)
    assert_rounded(y, whole(half)(*args).y, rounding(whole(half), *args).y)


@every_half
def test_none_in_means_none_out(half):
    c = case(half)
    assert jax.eval_shape(half, c.params, c.x, c.packed)[1] is None


@every_half
def test_state_keeps_its_shapes_and_dtypes(half):
    c = case(half)
    state = half.init_state(c.dims, c.x.shape[0], LENGTH)
    few = jax.tree.map(lambda a: a[:, :9], c.packed)
    _, after = jax.eval_shape(half, c.params, c.x[:, :9], few, state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
        lambda a: (a.shape, a.dtype), state
    )


@every_half
def test_state_can_be_donated(half):
    state = half.init_state(case(half).dims, ROWS, LENGTH)
    jax.jit(lambda state: state, donate_argnums=0)(state)  # refuses arrays that share memory


@every_half
def test_causality_no_output_sees_a_later_token(half):
    c, ctx = case(half), context(half, packed=True)
    y = whole(half)(c.params, c.x, ctx).y
    unit = rounding(whole(half), c.params, c.x, ctx).y
    for t in (0, 1, 63, 64, 100):
        later = jnp.arange(LENGTH)[None, :, None] > t
        changed = whole(half)(c.params, jnp.where(later, 3 * c.x[:, ::-1] + 1, c.x), ctx).y
        assert_rounded(changed[:, : t + 1], y[:, : t + 1], unit)
        assert not np.allclose(changed[:, t + 1 :], y[:, t + 1 :])


@every_half
def test_segments_a_packed_document_is_as_if_alone(half):
    c = case(half)
    packed = whole(half)(c.params, c.x, c.packed)
    unit = rounding(whole(half), c.params, c.x, c.packed).y
    for row, segments in enumerate(np.asarray(c.packed.segments)):
        for segment in range(1, segments.max() + 1):
            (where,) = np.nonzero(segments == segment)
            # the document at the start of a row of padding; the other row repeats it
            order = np.concatenate([where, np.setdiff1d(np.arange(LENGTH), where)])
            alone = jnp.tile(jnp.arange(LENGTH) < len(where), (2, 1)).astype(jnp.int32)
            positions, lengths = (
                a[row, order][None].repeat(2, 0) for a in (c.packed.positions, c.packed.lengths)
            )
            ctx = Context.of(positions, alone, lengths=lengths)
            x = jnp.stack([c.x[row, order]] * 2)
            result = whole(half)(c.params, x, ctx)
            assert_rounded(packed.y[row, where], result.y[0, : len(where)], unit)


@every_half
def test_segments_no_gradient_crosses_a_document(half):
    c = case(half)
    segments = np.asarray(c.packed.segments)

    def first_document(p, x, ctx):
        return half(p, x, ctx)[0] * (ctx.segments == 2)[..., None]

    dx = gradients_of(first_document)(c.params, c.x, c.packed).x
    inside, outside = (
        np.abs(np.asarray(dx)[where]).max() for where in (segments == 2, segments != 2)
    )
    assert inside > 0
    # Nothing at all, but for decays that tokens choose: log-decays are summed over a chunk and
    # subtracted again, and in what other documents' tokens get of that, terms cancel to rounding
    assert_within(outside, (1e-7 if chooses_decay(half) else 0) * inside)


@every_half
def test_dtype_bf16_computes_in_bf16_close_to_fp32(half):
    exact, c = case(half), case(half, "bfloat16")
    result = whole(half)(c.params, c.x, c.packed)
    assert result.y.dtype == result.x.dtype == jnp.bfloat16
    expected = whole(half)(exact.params, exact.x, exact.packed)
    # measured: up to 0.008 in outputs and 0.011 in gradients (bf16 rounds by up to 0.004);
    # behind a norm of what may be small, as above, up to 0.073 (GatedDeltaNet);
    # where blocks that fit alike are chosen between, up to 0.022 in outputs. Four times that, as
    # which sums are rounded to bf16 is the compiler's choice
    y, x = (0.3, 0.3) if normalises(half) or chooses_keys(half) else (0.032, 0.045)
    assert_within(rms_error(result.y, expected.y), y, "y")
    assert_within(rms_error(result.x, expected.x), x, "x")


@every_half
def test_dtype_recurrent_state_is_fp32_under_bf16(half):
    c = case(half, "bfloat16")
    for path, leaf in jax.tree_util.tree_leaves_with_path(half.init_state(c.dims, 1, 8)):
        tokens = ("k", "v", "last", "conv")  # copies of activations, not sums over the past
        if jax.tree_util.keystr(path[-1:], simple=True) not in tokens and leaf.dtype != jnp.int32:
            assert leaf.dtype == jnp.float32, jax.tree_util.keystr(path)


@every_half
def test_a_row_of_padding_and_a_batch_of_one_token_are_finite(half):
    c = case(half)
    nothing = Context.of(jnp.zeros((2, LENGTH), jnp.int32), jnp.zeros((2, LENGTH), jnp.int32))
    padding = whole(half)(c.params, c.x, nothing)
    one = whole(half)(c.params, c.x[:1, :1], jax.tree.map(lambda a: a[:1, :1], c.packed))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((padding, one)))


@pytest.mark.slow
@pytest.mark.parametrize("half", [h for h in ALGORITHMS if h in MIXER_CASES], ids=name)
def test_long_past_65536_positions_pieces_still_equal_the_whole(half):
    length = 2**16 + 300
    c = case(half, length=length, rows=1)
    ctx = Context.of(jnp.arange(length)[None])
    whole = jax.jit(lambda p, x: half(p, x, ctx)[0])
    step = jax.jit(lambda p, x, ctx, state: half(p, x, ctx, state))
    state, piece, outputs = half.init_state(c.dims, 1, length), 2**13, []
    for begin in range(0, length, piece):
        at = jax.tree.map(lambda a, b=begin: a[:, b : b + piece], ctx)
        y, state = step(c.params, c.x[:, begin : begin + piece], at, state)
        outputs.append(y)
    args = c.params, c.x
    y = jnp.concatenate(outputs, axis=1)
    assert_rounded(y, whole(*args), rounding(whole, *args, draws=1))
