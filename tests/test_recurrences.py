"""Recurrences: the plain forms against the papers' equations in float64, the fast against those."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.kernels import Kernels
from lcx.ops.delta_rule import delta_rule, diagonal_delta_rule
from lcx.ops.gated_linear_attention import gated_linear_attention
from lcx.ops.linear_attention import linear_attention
from lcx.ops.lru import lru
from lcx.ops.short_conv import short_conv
from lcx.ops.triangular import inverse
from lcx.ops.wkv import WKVState, wkv4

B, H, K, V = 2, 4, 7, 5


class Op(NamedTuple):
    """An op, its arguments from a generator, and its equation for one token of one row."""

    run: callable
    arguments: callable
    """(draw, T, decay) -> dict: `draw` gives normal numbers, `decay` a mean log-decay."""
    step: callable
    """(S, arguments of the token, constants) -> (S, o), in float64, for all heads."""


def keys(draw, T, decay=None):
    return {"q": draw(B, T, H, K), "k": draw(B, T, H, K), "v": draw(B, T, H, V)}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def forget(decay, *shape):
    """Log-decays spread around a mean, some of them 0."""
    spread = np.random.default_rng(5).exponential(-decay, shape)
    return -np.where(spread < -0.1 * decay, 0, spread)


def outer(a, b):
    return a[..., :, None] * b[..., None, :]


def added(S, t, _):
    repeat = t["v"].shape[0] // t["k"].shape[0]
    q, k = (np.repeat(t[n], repeat, axis=0) for n in "qk")
    S = np.exp(t["g"])[:, None, None] * S + outer(k, t["v"])
    return S, np.einsum("hk,hkv->hv", q, S)


def gated(S, t, constants):
    new = outer(t["k"], t["v"])
    after = np.exp(t["g"])[..., None] * S + new
    read = S + constants["bonus"][..., None] * new if "bonus" in constants else after
    return after, np.einsum("hk,hkv->hv", t["q"], read)


def replaced(S, t, _):
    beta, repeat = t["beta"][:, None, None], t["v"].shape[0] // t["k"].shape[0]
    q, k = (np.repeat(t[n], repeat, axis=0) for n in "qk")
    S = np.exp(t["g"])[:, None, None] * (S - beta * outer(k, np.einsum("hk,hkv->hv", k, S)))
    S = S + beta * outer(k, t["v"])
    return S, np.einsum("hk,hkv->hv", q, S)


def removed(S, t, _):
    read = np.einsum("hk,hkv->hv", t["a"], S)
    S = np.exp(t["g"])[..., None] * S + outer(t["b"], read) + outer(t["k"], t["v"])
    return S, np.einsum("hk,hkv->hv", t["q"], S)


def summed(S, t, _):
    S = np.exp(t["g"]) * S + t["x"]
    return S, S


def delta_arguments(draw, T, decay):
    rates = 2 / (1 + np.exp(-draw(B, T, H)))  # between 0 and 2
    own = keys(draw, T) | {"beta": rates, "g": forget(decay, B, T, H)}
    return own | {"k": unit(own["k"] + 1)}  # keys that resemble one another are the hard ones


def diagonal_arguments(draw, T, decay):
    removal = unit(draw(B, T, H, K) + 1)
    rate = 1 / (1 + np.exp(-draw(B, T, H, K)))
    more = {"a": -removal, "b": removal * rate, "g": forget(decay, B, T, H, K)}
    return keys(draw, T) | more


OPS = {
    "linear attention": Op(
        linear_attention, lambda draw, T, d: keys(draw, T) | {"g": forget(d, B, T, H)}, added
    ),
    "linear attention, shared keys": Op(
        linear_attention,
        lambda draw, T, d: {
            **{n: draw(B, T, 2, K) for n in "qk"},
            "v": draw(B, T, H, V),
            "g": forget(d, B, T, H),
        },
        added,
    ),
    "gated": Op(
        gated_linear_attention,
        lambda draw, T, d: keys(draw, T) | {"g": forget(d, B, T, H, K)},
        gated,
    ),
    "gated, bonus": Op(
        gated_linear_attention,
        lambda draw, T, d: keys(draw, T) | {"g": forget(d, B, T, H, K), "bonus": draw(H, K)},
        gated,
    ),
    "delta": Op(delta_rule, delta_arguments, replaced),
    "delta, shared keys": Op(
        delta_rule,
        lambda draw, T, d: {
            n: a[:, :, :2] if n in "qk" else a for n, a in delta_arguments(draw, T, d).items()
        },
        replaced,
    ),
    "diagonal delta": Op(diagonal_delta_rule, diagonal_arguments, removed),
    "lru": Op(lru, lambda draw, T, d: {"x": draw(B, T, K), "g": forget(d, B, T, K)}, summed),
}
BY_FEATURE = ("gated", "gated, bonus", "diagonal delta")
every_op = pytest.mark.parametrize("name", OPS)


def case(name, T, decay=-0.3, seed=0):
    """Arguments in float64; starts, two in the first row and one in the second; a state, and what
    documents begin from."""
    rng = np.random.default_rng(seed)
    arguments = OPS[name].arguments(lambda *shape: rng.standard_normal(shape), T, decay)
    starts = np.zeros((B, T), bool)
    starts[0, [T // 3, T // 2]] = starts[1, T // 4] = True
    shape = (B, K) if name == "lru" else (B, H, K, V)
    return arguments, starts, rng.standard_normal(shape), rng.standard_normal((1, *shape[1:]))


def by_equation(name, arguments, starts, state, initial):
    step, constants = OPS[name].step, {n: arguments[n] for n in ("bonus",) if n in arguments}
    outputs, states = [], []
    for row in range(B):
        S, o = state[row], []
        for t in range(starts.shape[1]):
            token = {n: a[row, t] for n, a in arguments.items() if n not in constants}
            S, out = step(initial[0] if starts[row, t] else S, token, constants)
            o.append(out)
        outputs.append(o)
        states.append(S)
    return np.array(outputs), np.array(states)


def fp32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def error(got, expected):
    """The largest error of any leaf, relative to its largest entry."""

    def one(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all()
        return np.abs(a - b).max() / max(np.abs(b).max(), 1.0)

    return max(jax.tree.leaves(jax.tree.map(one, got, expected)))


@every_op
def test_the_plain_form_is_the_papers_equation(name):
    arguments, starts, state, initial = case(name, 40)
    run = partial(OPS[name].run, kernels=Kernels("reference"), starts=jnp.asarray(starts))
    given = fp32({"state": state, "initial": initial})
    for first in (initial, np.zeros_like(initial)):
        if not first.any():
            del given["initial"]
        got = run(**fp32(arguments), **given)
        expected = by_equation(name, arguments, starts, state, first)
        assert error(got, expected) < 1e-6  # measured: up to 1.5e-7


@cache
def form(name, kernels, chunk=None):
    """Compiled (arguments, state, initial, starts) -> gradients, and outputs and state."""
    own = {"chunk": chunk} if chunk else {}

    def loss(arguments, state, initial, starts):
        run = partial(OPS[name].run, kernels=kernels, **own)
        o, S = run(**arguments, starts=starts, state=state, initial=initial)
        probe = jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape)
        return (o * probe).sum() + jnp.sin(S).sum(), (o, S)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def both(name, arguments, starts, state, initial=None, chunk=None):
    """Outputs, state and gradients of the fast form, and of the plain one."""
    args = fp32(arguments), fp32(state), fp32(initial), starts
    # a CPU left to itself takes the plain form of the lru
    return form(name, Kernels("xla"), chunk)(*args), form(name, Kernels("reference"))(*args)


@every_op
@pytest.mark.parametrize("decay", [-0.01, -1.0, -15.0])
def test_the_fast_form_equals_the_plain_one(name, decay):
    arguments, starts, state, initial = case(name, 150, decay)
    fast, plain = both(name, arguments, jnp.asarray(starts), state, initial)
    # measured: up to 2.7e-6; at -15, where a chunk's log-decays sum to -1000 and are rounded by
    # 3e-5, up to 3.6e-5 where each feature has its own
    assert error(fast, plain) < (1.5e-4 if decay < -10 and name in BY_FEATURE else 1.5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPS if name != "lru"])
def test_a_chunk_of_any_size_gives_the_same(name):
    """Longer than the text, a single token, and a text that is a multiple of nothing."""
    for T, chunk in ((1, 64), (3, 32), (5, 8), (7, 1), (33, 4), (64, 64)):
        arguments, _, state, _ = case(name, T)
        fast, plain = both(name, arguments, None, state, chunk=chunk)
        assert error(fast, plain) < 1e-5, (T, chunk)


@every_op
def test_longer_than_a_slab(name):
    arguments, starts, state, initial = case(name, 700)
    fast, plain = both(name, arguments, jnp.asarray(starts), state, initial)
    assert error(fast, plain) < 1e-5  # measured: up to 1.6e-6


@every_op
def test_decays_that_leave_nothing_are_exact_and_finite(name):
    """Log-decays of -1000: fp32 has no e^-1000, nor the differences of their sums."""
    arguments, _, state, _ = case(name, 100)
    rng = np.random.default_rng(2)
    g = np.where(rng.random(arguments["g"].shape) < 0.5, -1000.0, -0.01)
    fast, plain = both(name, arguments | {"g": g}, None, state)
    # as above; measured: up to 3.5e-5
    assert error(fast, plain) < (1.5e-4 if name in BY_FEATURE else 1.5e-5)


@cache
def wkv4_form(kernels):
    """Compiled (w, u, k, v, state, initial, starts) -> gradients, and outputs and state."""

    def loss(w, u, k, v, state, initial, starts):
        more = {"starts": starts, "state": WKVState(*state), "initial": WKVState(*initial)}
        o, state = wkv4(w, u, k, v, **more, kernels=kernels)
        # a state's exponent carries no gradient: it is a unit for the sums
        true = [a * jnp.exp(jnp.minimum(state.exponent, 0)) for a in state[:2]]
        probe = jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape)
        return (o * probe).sum() + sum(a.sum() for a in true), (o, state)

    return jax.jit(jax.grad(loss, argnums=range(6), has_aux=True))


@pytest.mark.parametrize("length", [1, 40, 1100])
@pytest.mark.parametrize("decay", [-1e-3, -3.0, -400.0])
def test_scaled_wkv4_equals_the_plain_form_and_the_equation(length, decay):
    """Keys of up to e^90 either way, and more tokens than a slab."""
    rng = np.random.default_rng(0)
    w, u = decay * rng.uniform(0.5, 2, K), rng.standard_normal(K)
    k, v = 30 * rng.standard_normal((B, length, K)), rng.standard_normal((B, length, K))
    starts = np.zeros((B, length), bool)
    starts[0, [length // 3, length // 2]] = starts[1, length // 4] = True
    before, first = (
        [rng.standard_normal((n, K)), np.ones((n, K)), 30 * rng.standard_normal((n, K))]
        for n in (B, 1)
    )
    args = *fp32((w, u, k, v, before, first)), jnp.asarray(starts)
    fast, plain = (wkv4_form(Kernels(name))(*args) for name in ("xla", "reference"))
    assert error(fast, plain) < 2e-5
    if length > 40:
        return
    for row in range(B):
        top, bottom, unit = (a[row] for a in before)
        for t in range(length):
            if starts[row, t]:
                top, bottom, unit = (a[0] for a in first)
            k_t, v_t = k[row, t], v[row, t]
            scale = np.maximum(unit, u + k_t)
            a, b = np.exp(unit - scale), np.exp(u + k_t - scale)
            wanted = (a * top + b * v_t) / (a * bottom + b)
            assert error(fast[1][0][row, t], wanted) < 1e-5
            scale = np.maximum(unit + w, k_t)
            a, b = np.exp(unit + w - scale), np.exp(k_t - scale)
            top, bottom, unit = a * top + b * v_t, a * bottom + b, scale


@pytest.mark.parametrize("name", ["gated", "delta", "diagonal delta"])
def test_a_chunk_that_cannot_be_halved_is_refused(name):
    with pytest.raises(ValueError, match="chunk must be a power of two, not 30"):
        OPS[name].run(**fp32(case(name, 4)[0]), chunk=30)


def test_delta_rules_with_equal_keys_and_no_decay():
    """The worst triangular system: every token replaces what the one before has written."""
    rng = np.random.default_rng(0)
    T, k = 256, unit(np.ones((B, 256, H, K)))
    arguments = keys(lambda *shape: rng.standard_normal(shape), T) | {"k": k}
    for beta in (1.0, 1.9):
        rates = np.full((B, T, H), beta)
        own = arguments | {"beta": rates, "g": np.zeros((B, T, H))}
        fast, plain = both("delta", own, None, np.zeros((B, H, K, V)))
        assert error(fast, plain) < 1e-4, beta  # measured: 2.9e-5, and 7.5e-5


def test_the_inverse_of_a_triangular_matrix():
    rng = np.random.default_rng(0)
    for C in (1, 2, 8, 64):
        a = np.tril(rng.uniform(-1, 0.2, (3, C, C)), -1)
        exact = np.linalg.inv(np.eye(C) - a)
        got, pull = jax.vjp(inverse, jnp.asarray(a, jnp.float32))
        assert error(got, exact) < 1e-5
        probe = rng.standard_normal((3, C, C))
        expected = np.tril(np.swapaxes(exact, 1, 2) @ probe @ np.swapaxes(exact, 1, 2), -1)
        assert error(pull(jnp.asarray(probe, jnp.float32))[0], expected) < 1e-5


def test_the_short_convolution_is_a_sum_over_taps():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, 9, 3)), rng.standard_normal((4, 3)), np.ones(3)
    starts = np.zeros((2, 9), bool)
    starts[1, [5, 8]] = True
    initial = rng.standard_normal((3, 3))
    for first in (None, initial):
        found = np.zeros_like(initial) if first is None else first
        expected = np.zeros_like(x)
        for row, t, tap in np.ndindex(2, 9, 4):
            begin = max((s for s in range(t + 1) if starts[row, s]), default=None)
            s = t - 3 + tap
            if begin is not None and s < begin:
                expected[row, t] += weight[tap] * found[3 + s - begin]
            elif s >= 0:
                expected[row, t] += weight[tap] * x[row, s]
        more = {} if first is None else {"initial": fp32(first[None])}
        got, last = short_conv(*fp32((x, weight, bias)), starts=jnp.asarray(starts), **more)
        assert error(got, expected + 1) < 1e-6
        np.testing.assert_array_equal(last[0], fp32(x)[0, 6:])
        np.testing.assert_array_equal(last[1], fp32(np.concatenate([found[1:], x[1, 8:]])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear attention", "gated", "delta", "diagonal delta", "lru"])
def test_memory_is_linear_in_the_length(name):
    """What the compiled gradient needs besides its arguments."""

    def temporaries(T):
        arguments = case(name, 64)[0]
        like = {n: jnp.zeros((B, T, *a.shape[2:]), jnp.float32) for n, a in arguments.items()}

        def loss(arguments):
            return OPS[name].run(**arguments)[0].sum()

        return jax.jit(jax.grad(loss)).lower(like).compile().memory_analysis().temp_size_in_bytes

    sizes = [temporaries(T) for T in (8192, 16_384, 32_768)]
    assert sizes[2] - sizes[1] < 2.5 * (sizes[1] - sizes[0])  # linear: 2; quadratic: 4
