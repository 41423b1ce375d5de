"""Softmax attention: the blockwise form against the plain one, values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.attention import _blockwise, _Tiling, attention

NAMES = ("o", "dq", "dk", "dv")

# Two shapes of loop: tiles written out, batch rows in turn; and compiled loops over whole batches.
UNROLLED, LOOPED = _Tiling(1, 16, 16, unroll=True), _Tiling(2, 16, 24, unroll=False)
both_tilings = pytest.mark.parametrize("tiling", [UNROLLED, LOOPED], ids=["unrolled", "looped"])


def inputs(B=2, T=40, S=None, H=4, G=2, K=8, V=None, dtype=jnp.float32):
    """q, k, v and the gradient of the output."""
    S, V = S or T, V or K
    shapes = (B, T, H, K), (B, S, G, K), (B, S, G, V), (B, T, H, V)
    keys = jax.random.split(jax.random.key(0), 4)
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))


def output_and_gradients(form, q, k, v, do, **options):
    o, pull = jax.vjp(partial(form, **options), q, k, v)
    return dict(zip(NAMES, (o, *pull(do)), strict=True))


def tiled(tiling, q, k, v, *, offset=0, window=None, segments=None):
    """The blockwise form, cut as the test says."""
    B, T, H, K = q.shape
    G = k.shape[2]
    o = _blockwise(
        q.reshape(B, T, G, H // G, K),
        *(k, v, offset),
        window=window,
        scale=K**-0.5,
        segments=segments,
        tiling=tiling._replace(queries=min(T, tiling.queries), keys=min(k.shape[1], tiling.keys)),
    )
    return o.reshape(B, T, H, -1)


def check(arrays, tiling=None, bound=1e-5, offsets=None, segments=None, **options):
    """The two forms agree; measured: to 1.3e-6. `offsets` are given at run time, in turn."""
    blockwise = attention if tiling is None else partial(tiled, tiling)
    reference = partial(attention, implementation="reference")

    @jax.jit
    def both(arrays, segments, traced):
        given = options | {"segments": segments} | traced
        return [output_and_gradients(form, *arrays, **given) for form in (blockwise, reference)]

    for traced in [{}] if offsets is None else [{"offset": jnp.int32(n)} for n in offsets]:
        errors = worst(*both(arrays, segments, traced))
        assert max(errors.values()) < bound, (traced, errors)


def worst(got, expected):
    """Largest error of each array, relative to its largest entry (or to 1: softmax over one key
    has gradients of 0)."""
    assert all(jnp.isfinite(x).all() for x in got.values())
    errors = {n: jnp.abs(got[n].astype(jnp.float32) - expected[n]).max() for n in NAMES}
    return {n: float(e / jnp.maximum(jnp.abs(expected[n]).max(), 1)) for n, e in errors.items()}


def test_reference_is_softmax_attention_written_out():
    q, k, v, _ = inputs(B=1, T=5, S=8, H=2, G=1, K=4, V=3)
    got = attention(q, k, v, offset=2, window=3, scale=0.7, implementation="reference")
    for t in range(5):
        seen = range(max(0, t), t + 3)
        for h in range(2):
            scores = np.array([0.7 * np.dot(q[0, t, h], k[0, s, 0]) for s in seen])
            weights = np.exp(scores) / np.exp(scores).sum()
            wanted = sum(w * np.asarray(v[0, s, 0]) for w, s in zip(weights, seen, strict=True))
            np.testing.assert_allclose(got[0, t, h], wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("T", [1, 3, 15, 16, 17, 33])
@both_tilings
def test_lengths_around_the_tile(T, tiling):
    check(inputs(T=T), tiling)


@pytest.mark.parametrize(("G", "V"), [(1, 8), (1, 12), (2, 4), (4, 8), (4, 12)])
def test_shared_kv_heads_and_value_widths(G, V):
    check(inputs(G=G, V=V), LOOPED)


@pytest.mark.parametrize("window", [1, 7, 16, 100])
@both_tilings
def test_windows(window, tiling):
    check(inputs(T=41, G=1), tiling, window=window)


@pytest.mark.parametrize(
    ("offset", "window"), [(13, None), (39, None), (37, 7), (39, 16), (-5, None)]
)
def test_offsets_into_a_longer_cache(offset, window):
    """Offset -5: the first queries come before every key, see none, and give 0."""
    check(inputs(T=21, S=60, K=4), UNROLLED, offset=offset, window=window)


@pytest.mark.parametrize("window", [None, 7, 24])
@both_tilings
def test_offsets_known_at_run_time(window, tiling):
    check(inputs(T=21, S=60), tiling, window=window, offsets=[-30, -5, 0, 13, 27, 39, 60])


@pytest.mark.parametrize("window", [None, 9])
@both_tilings
def test_packed_segments(window, tiling):
    theirs = jnp.repeat(jnp.array([[1, 2, 3], [7, 8, 0]]), 16, axis=1).at[:, :3].set(9)
    theirs = theirs.at[0, 37:40].set(5)
    arrays, segments = inputs(T=21, S=48), (theirs[:, 20:41], theirs)
    check(arrays, tiling, segments=segments, window=window, offset=20)
    check(arrays, tiling, segments=segments, window=window, offsets=[0, 20, 27])


@pytest.mark.parametrize("form", ["reference", "blockwise"])
def test_a_query_without_keys_gives_zero_and_takes_no_gradient(form):
    segments = jnp.ones((2, 6), jnp.int32).at[:, 4].set(2), jnp.ones((2, 40), jnp.int32)
    call = partial(attention, offset=-3, implementation=form)
    got = jax.jit(partial(output_and_gradients, call))(*inputs(T=6, S=40), segments=segments)
    blind, seeing = jnp.array([0, 1, 2, 4]), jnp.array([3, 5])
    assert (got["o"][:, blind] == 0).all()
    assert (got["dq"][:, blind] == 0).all()
    assert (jnp.abs(got["o"][:, seeing]) > 0).all()
    assert all(jnp.isfinite(x).all() for x in got.values())


@pytest.mark.parametrize(("T", "S", "offset"), [(1, 600, 599), (1, 600, 3), (520, 700, 100)])
def test_the_tiling_chosen_by_itself(T, S, offset):
    check(inputs(B=1, T=T, S=S, H=2, G=1), offsets=[offset])


def test_scores_past_the_range_of_exp():
    q, k, v, do = inputs()
    check((10 * q, 10 * k, v, do), LOOPED, bound=1e-3)  # LARGE; exp overflows from 89


def test_bf16_stays_near_fp32():
    rounded = inputs(T=150, K=16, dtype=jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in rounded]
    run = jax.jit(partial(output_and_gradients, attention))
    got, wanted = run(*rounded), run(*exact)
    assert all(x.dtype == jnp.bfloat16 for x in got.values())
    assert max(worst(got, wanted).values()) < 1e-2  # measured BF16; bf16 rounds to 4e-3


def test_no_output_depends_on_what_it_may_not_see():
    q, k, v, _ = inputs(T=200, H=2, G=1)
    call = jax.jit(partial(attention, window=40))
    whole, time = call(q, k, v), jnp.arange(200)[:, None, None]
    for cut in (70, 128):
        changed = call(q, jnp.where(time >= cut, 9.0, k), jnp.where(time >= cut, -9.0, v))
        np.testing.assert_array_equal(changed[:, :cut], whole[:, :cut])
        assert (changed[:, cut:] != whole[:, cut:]).any(axis=(0, 2, 3)).all()
    changed = call(q, k, jnp.where(time == 0, 1e3, v))
    np.testing.assert_array_equal(changed[:, 40:], whole[:, 40:])
    assert (changed[:, :40] != whole[:, :40]).any(axis=(0, 2, 3)).all()


def test_tiles_out_of_sight_are_never_read():
    """A NaN spreads through any product: where none comes out, none was read."""
    q, k, v, do = inputs(B=1, T=1100, S=2200, H=1, G=1)
    time = jnp.arange(2200)[:, None, None]
    holes = (time < 500) | (time >= 1650)
    k, v = jnp.where(holes, jnp.nan, k), jnp.where(holes, jnp.nan, v)
    run = jax.jit(partial(output_and_gradients, partial(attention, window=5)))
    got = run(q[:, :600], k, v, do[:, :600], offset=jnp.int32(1024))
    assert all(jnp.isfinite(x).all() for x in got.values())


def test_composes_with_the_transforms():
    q, k, v, do = inputs(B=1, T=20, S=50)

    @partial(jax.jit, static_argnums=0)
    def gradients(implementation, q, offsets):
        @jax.checkpoint
        def loss(q, offset):
            o = attention(q, k, v, offset=offset, window=9, implementation=implementation)
            return jnp.vdot(o, do)

        one = jax.value_and_grad(loss)
        scanned = jax.lax.scan(lambda _, offset: (None, one(q, offset)), None, offsets)[1]
        return jax.vmap(one, in_axes=(None, 0))(q, offsets), scanned

    offsets = jnp.array([0, 13, 30])
    got, wanted = gradients("blockwise", q, offsets), gradients("reference", q, offsets)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_integer_arguments_have_the_gradient_of_integers():
    q, k, v, _ = inputs(T=4)

    def loss(q, offset, segments):
        return attention(q, k, v, offset=offset, segments=(segments, segments)).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2), allow_int=True)
    grads = gradient(q, jnp.int32(0), jnp.ones((2, 4), jnp.int32))
    assert [g.dtype for g in grads] == [jnp.float32, jax.dtypes.float0, jax.dtypes.float0]
    assert [g.shape for g in grads[1:]] == [(), (2, 4)]


@pytest.mark.parametrize("options", [{}, {"window": 100}], ids=["whole past", "window"])
def test_memory_is_linear_in_the_length(options):
    def temporaries(T):
        x = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32)
        loss = lambda q, k, v: attention(q, k, v, **options).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = [temporaries(T) for T in (2048, 8192, 32768)]
    steps = sizes[1] - sizes[0], sizes[2] - sizes[1]
    # Four times the step. Measured 5.9: short texts reuse the tiles' memory. Quadratic: 16.
    assert steps[1] < 8 * steps[0]
    assert sizes[2] < 32768**2 / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": jnp.zeros((2, 40, 3, 8)), "v": jnp.zeros((2, 40, 3, 8))}, "multiple of the 3"),
        ({"window": 0}, "at least 1"),
        ({"k": jnp.zeros((2, 0, 2, 8)), "v": jnp.zeros((2, 0, 2, 8))}, "needs a query and a key"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match=message):
        attention(**({"q": q, "k": k, "v": v} | change))
