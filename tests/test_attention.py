"""Softmax attention: the blockwise form against the plain one, values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.kernels import Kernels
from lcx.ops.attention import FEW, Bias, attention, merge
from lcx.ops.blockwise import blockwise
from lcx.ops.tiles import MASK_VALUE, Scoring, Tiling
from tests.marks import rest

NAMES = ("o", "lse", "dq", "dk", "dv")

# Two shapes of loop: tiles written out, batch rows in turn; and compiled loops over whole batches.
UNROLLED, LOOPED = Tiling(1, 16, 16, unroll=True), Tiling(2, 16, 24, unroll=False)


def inputs(B=2, T=40, S=None, H=4, G=2, K=8, V=None, dtype=jnp.float32):
    """q, k, v and the gradient of the output."""
    S, V = S or T, V or K
    shapes = (B, T, H, K), (B, S, G, K), (B, S, G, V), (B, T, H, V)
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(s).astype(dtype)) for s in shapes)


def output_and_gradients(form, q, k, v, do, **options):
    (o, lse), pull = jax.vjp(partial(form, **options), q, k, v)
    dlse = jnp.sin(jnp.arange(lse.size, dtype=lse.dtype)).reshape(lse.shape)
    return dict(zip(NAMES, (o, lse, *pull((do, dlse))), strict=True))


def tiled(tiling, q, k, v, *, offset=0, window=None, softcap=None, segments=None, bias=None):
    """The blockwise form, cut as the test says."""
    B, T, H, K = q.shape
    G = k.shape[2]
    tiling = tiling._replace(queries=min(T, tiling.queries), keys=min(k.shape[1], tiling.keys))
    slopes, positions = bias or (None, None)
    scoring = Scoring(K**-0.5, window, softcap, slopes)
    grouped = q.reshape(B, T, G, H // G, K)
    o, lse = blockwise(grouped, k, v, offset, scoring, segments, positions, tiling)
    return o.reshape(B, T, H, -1), lse.reshape(B, T, H)


def check(arrays, tiling=None, bound=1e-5, offsets=None, segments=None, **options):
    """The two forms agree; measured: to 1e-6. `offsets` are given at run time, in turn."""
    fast = attention if tiling is None else partial(tiled, tiling)
    reference = partial(attention, kernels=Kernels("reference"))

    @jax.jit
    def both(arrays, segments, traced):
        given = options | {"segments": segments} | traced
        return [output_and_gradients(form, *arrays, **given) for form in (fast, reference)]

    for traced in [{}] if offsets is None else [{"offset": jnp.int32(n)} for n in offsets]:
        errors = worst(*both(arrays, segments, traced))
        assert max(errors.values()) < bound, (traced, errors)


def worst(got, expected):
    """Largest error of each array, relative to its largest entry (or to 1: softmax over one key
    has gradients of 0)."""
    got, expected = ({n: np.asarray(x, np.float32) for n, x in d.items()} for d in (got, expected))
    assert all(np.isfinite(x).all() for x in got.values())
    return {n: abs(got[n] - x).max() / max(abs(x).max(), 1) for n, x in expected.items()}


def test_reference_is_softmax_attention_written_out():
    q, k, v, _ = inputs(B=1, T=5, S=8, H=2, G=1, K=4, V=3)
    options = {"offset": 2, "window": 3, "scale": 0.7, "softcap": 1.1}
    got, lse = attention(q, k, v, **options, kernels=Kernels("reference"))
    for t in range(5):
        seen = range(max(0, t), t + 3)
        for h in range(2):
            scores = np.array([0.7 * np.dot(q[0, t, h], k[0, s, 0]) for s in seen])
            scores = 1.1 * np.tanh(scores / 1.1)
            weights = np.exp(scores) / np.exp(scores).sum()
            wanted = sum(w * np.asarray(v[0, s, 0]) for w, s in zip(weights, seen, strict=True))
            np.testing.assert_allclose(got[0, t, h], wanted, rtol=2e-5, atol=1e-6)
            np.testing.assert_allclose(lse[0, t, h], np.log(np.exp(scores).sum()), rtol=2e-5)


def test_merged_sets_of_keys_are_one_softmax():
    q, k, v, do = inputs(T=24)
    segments = jnp.arange(24)[None].repeat(2, 0) // 9

    def apart(q, k, v):
        near = attention(q, k, v, window=5, segments=(segments, segments))
        # the whole past as seen by the token 5 before: nothing at first
        far = attention(q, k, v, offset=-5, segments=(segments, segments))
        return merge(near, far)

    whole = partial(attention, segments=(segments, segments))
    errors = worst(*(output_and_gradients(form, q, k, v, do) for form in (apart, whole)))
    assert max(errors.values()) < 5e-6  # measured: 1e-6
    blind = attention(q, k, v, offset=-30)
    assert (blind[1] == MASK_VALUE).all()
    o, lse = merge(blind, blind)
    assert (np.asarray(o) == 0).all()
    assert np.isfinite(lse).all()


@pytest.mark.parametrize(
    ("tiling", "shape", "options"),
    [
        # Lengths around the tile of 16 queries, and of 16 or 24 keys.
        rest(UNROLLED, {"T": 1}, {}),
        rest(UNROLLED, {"T": 16}, {}),
        (UNROLLED, {"T": 33}, {}),
        rest(LOOPED, {"T": 3}, {}),
        rest(LOOPED, {"T": 15}, {}),
        (LOOPED, {"T": 17}, {}),
        rest(LOOPED, {"T": 49}, {}),
        # Multi-head, multi-query; values wider and narrower than keys.
        rest(LOOPED, {"G": 4, "V": 12}, {}),
        (LOOPED, {"G": 1, "V": 4}, {}),
        # Windows.
        rest(UNROLLED, {"T": 33, "G": 1}, {"window": 1}),
        rest(UNROLLED, {"T": 33, "G": 1}, {"window": 100}),
        (LOOPED, {"T": 65, "G": 1}, {"window": 7}),
        rest(LOOPED, {"T": 65, "G": 1}, {"window": 24}),
        # A cap on the scores, about half of the largest.
        rest(UNROLLED, {"T": 33, "G": 1}, {"softcap": 1.5}),
        (LOOPED, {"T": 49}, {"softcap": 1.5, "window": 20}),
        # Some of a longer text's queries. At -5 the first come before every key.
        (UNROLLED, {"T": 21, "S": 60}, {"offset": 39}),
        rest(UNROLLED, {"T": 21, "S": 60}, {"offset": 37, "window": 7}),
        (LOOPED, {"T": 21, "S": 60}, {"offset": -5, "window": 16}),
    ],
)
def test_blockwise_equals_reference(tiling, shape, options):
    check(inputs(**shape), tiling, **options)


@pytest.mark.parametrize(
    ("tiling", "window"), [(UNROLLED, None), (LOOPED, None), (LOOPED, 7), (LOOPED, 45)]
)
def test_offsets_known_at_run_time(tiling, window):
    """Every offset, hence every way for the diagonal and the window to cut the tiles."""
    check(inputs(B=1, T=21, S=85, H=2), tiling, window=window, offsets=range(-30, 110))


@pytest.mark.parametrize(("tiling", "window"), [(UNROLLED, None), (LOOPED, None), (LOOPED, 30)])
def test_an_offset_for_each_query(tiling, window):
    own = np.sort(np.random.default_rng(3).integers(-9, 110, (2, 21)), axis=1).astype(np.int32)
    theirs = np.repeat(np.array([[1, 2], [1, 2]], np.int32), 43, axis=1)[:, :85]
    for segments in (None, (theirs[:, 30:51], theirs)):
        check(inputs(T=21, S=85), tiling, window=window, segments=segments, offsets=[own])


@pytest.mark.parametrize(("tiling", "window"), [(UNROLLED, None), (LOOPED, None), (LOOPED, 9)])
def test_packed_segments(tiling, window):
    theirs = np.repeat(np.array([[1, 2, 3], [7, 8, 0]], np.int32), 16, axis=1)
    theirs[:, :3], theirs[0, 37:40] = 9, 5
    segments = theirs[:, 20:41], theirs
    check(inputs(T=21, S=48), tiling, segments=segments, window=window, offsets=[0, 20, 27])


SLOPES = (0.5, 0.25, 2.0**-3, 2.0**-8)


@pytest.mark.parametrize(
    ("tiling", "options"),
    [(UNROLLED, {}), (LOOPED, {"softcap": 1.5}), (LOOPED, {"window": 20}), (None, {})],
)
def test_bias_on_the_distance(tiling, options):
    """Far from 0, with unequal steps between tokens, and as some of a longer text's queries."""
    steps = np.random.default_rng(2).integers(1, 4, (2, 60))
    theirs = jnp.asarray(2**24 + np.cumsum(steps, axis=1), jnp.int32)
    bias = Bias(SLOPES, (theirs[:, 27:48], theirs))
    check(inputs(T=21, S=60), tiling, bias=bias, offsets=[27], **options)
    starts = np.repeat(np.array([[1, 2, 3], [7, 8, 0]], np.int32), 20, axis=1)
    segments = starts[:, 27:48], starts
    apart = jnp.where(starts % 2 == 0, theirs, theirs - 2**24)
    bias = Bias(SLOPES, (apart[:, 27:48], apart))
    check(inputs(T=21, S=60), tiling, bias=bias, segments=segments, offsets=[27], **options)


@pytest.mark.parametrize("form", ["reference", "xla"])
def test_a_query_without_keys_gives_zero_and_takes_no_gradient(form):
    segments = np.ones((2, 6), np.int32), np.ones((2, 40), np.int32)
    segments[0][:, 4] = 2
    call = partial(attention, offset=-3, kernels=Kernels(form))
    got = jax.jit(partial(output_and_gradients, call))(*inputs(T=6, S=40), segments=segments)
    got = {n: np.asarray(x) for n, x in got.items()}
    blind, seeing = [0, 1, 2, 4], [3, 5]
    assert (got["o"][:, blind] == 0).all()
    assert (got["dq"][:, blind] == 0).all()
    assert (got["o"][:, seeing] != 0).all()
    assert all(np.isfinite(x).all() for x in got.values())


@pytest.mark.parametrize(("T", "S", "offset"), [(1, 600, 599), (520, 700, 100)])
def test_the_tiling_chosen_by_itself(T, S, offset):
    check(inputs(B=1, T=T, S=S, H=2, G=1), offsets=[offset])


@pytest.mark.parametrize(
    ("T", "heads", "options"),
    [
        (1, {}, {}),
        (FEW, {"G": 1, "V": 12}, {"softcap": 1.5}),
        (FEW, {"G": 4}, {"window": 50}),
    ],
)
def test_few_queries_have_all_scores_at_once(T, heads, options):
    """Before there is a key, among them, past them all, and each at an index of its own."""
    S = 60
    arrays = inputs(T=T, S=S, **heads)
    documents = np.repeat(np.array([[1, 2, 3, 4], [7, 8, 8, 0]], np.int32), S // 4, axis=1)
    # the second row's queries are of a document that no key is of
    segments = np.array([[1] * T, [5] * T], np.int32), documents
    at = jnp.asarray(2**24 + np.arange(S, dtype=np.int32)[None].repeat(2, axis=0))
    bias = Bias(SLOPES, (at[:, 37 : 37 + T], at))
    own = np.array([[10] * T, [39 + T] * T], np.int32)
    check(arrays, segments=segments, bias=bias, offsets=[-1, 12, S + 400, own], **options)
    check(arrays, offset=S - T, **options)


def test_scores_past_the_range_of_exp():
    q, k, v, do = inputs()
    check((10 * q, 10 * k, v, do), LOOPED, bound=1e-4)  # measured 2e-5; exp overflows from 89


def test_bf16_stays_near_fp32():
    rounded = inputs(T=150, K=16, dtype=jnp.bfloat16)
    exact = [x.astype(np.float32) for x in rounded]
    run = jax.jit(partial(output_and_gradients, attention))
    got, wanted = run(*rounded), run(*exact)
    assert all(x.dtype == jnp.bfloat16 for name, x in got.items() if name != "lse")
    assert "lse" not in got or got["lse"].dtype == jnp.float32
    assert max(worst(got, wanted).values()) < 1e-2  # measured 4e-3, bf16's rounding


def test_no_output_depends_on_what_it_may_not_see():
    q, k, v, _ = inputs(T=200, H=2, G=1)
    call = jax.jit(partial(attention, window=40))
    whole, time = np.asarray(call(q, k, v)[0]), np.arange(200)[:, None, None]
    k, v = np.asarray(k), np.asarray(v)
    for cut in (70, 128):
        later = np.float32(9) * (time >= cut)
        changed = np.asarray(call(q, k + later, v - later)[0])
        np.testing.assert_array_equal(changed[:, :cut], whole[:, :cut])
        assert (changed[:, cut:] != whole[:, cut:]).any(axis=(0, 2, 3)).all()
    changed = np.asarray(call(q, k, v + np.float32(1e3) * (time == 0))[0])
    np.testing.assert_array_equal(changed[:, 40:], whole[:, 40:])
    assert (changed[:, :40] != whole[:, :40]).any(axis=(0, 2, 3)).all()


def test_tiles_out_of_sight_are_never_read():
    """A NaN spreads through any product: where none comes out, none was read."""
    q, k, v, do = inputs(B=1, T=600, S=2200, H=1, G=1)
    k, v, time = np.array(k), np.array(v), np.arange(2200)
    holes = (time < 850) | (time >= 1900)
    k[:, holes] = v[:, holes] = np.nan
    run = jax.jit(partial(output_and_gradients, partial(attention, window=5)))
    got = run(q, k, v, do, offset=np.int32(1024))
    assert all(np.isfinite(x).all() for x in got.values())


def test_composes_with_the_transforms():
    q, k, v, do = inputs(B=1, T=20, S=50)

    @partial(jax.jit, static_argnums=0)
    def gradients(kernels, q, offsets):
        @jax.checkpoint
        def loss(q, offset):
            o, _ = attention(q, k, v, offset=offset, window=9, kernels=kernels)
            return jnp.vdot(o, do)

        one = jax.value_and_grad(loss)
        scanned = jax.lax.scan(lambda _, offset: (None, one(q, offset)), None, offsets)[1]
        return jax.vmap(one, in_axes=(None, 0))(q, offsets), scanned

    offsets = np.array([0, 13, 30])
    got, wanted = gradients(Kernels("xla"), q, offsets), gradients(Kernels("reference"), q, offsets)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_integer_arguments_have_the_gradient_of_integers():
    q, k, v, _ = inputs(T=4)

    def loss(q, offset, segments):
        return attention(q, k, v, offset=offset, segments=(segments, segments))[0].sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), allow_int=True))
    grads = gradient(q, jnp.int32(0), np.ones((2, 4), np.int32))
    assert [g.dtype for g in grads] == [jnp.float32, jax.dtypes.float0, jax.dtypes.float0]
    assert [g.shape for g in grads[1:]] == [(), (2, 4)]


@pytest.mark.parametrize("kind", ["whole past", "window", "bias"])
def test_memory_is_linear_in_the_length(kind):
    def temporaries(T):
        x = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32)
        at = jnp.arange(T)[None]
        options = {
            "whole past": {},
            "window": {"window": 100},
            "bias": {"bias": Bias((0.5, 0.25), (at, at))},
        }
        loss = lambda q, k, v: attention(q, k, v, **options[kind])[0].sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # where what grows outweighs the tiles: 39 and 74 MB on jax 0.10, 34 and 67 MB on 0.12
    short, long = (temporaries(T) for T in (2**17, 2**18))
    assert long < 2.2 * short  # quadratic: 4
    assert short < 2**17 * 2**9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": jnp.zeros((2, 40, 3, 8)), "v": jnp.zeros((2, 40, 3, 8))}, "multiple of the 3"),
        ({"window": 0}, "at least 1"),
        ({"softcap": 0.0}, "softcap must be positive"),
        ({"k": jnp.zeros((2, 0, 2, 8)), "v": jnp.zeros((2, 0, 2, 8))}, "needs a query and a key"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match=message):
        attention(**({"q": q, "k": k, "v": v} | change))
