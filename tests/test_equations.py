"""Whole mixers that no library has a module of, written from their papers in float64.

Outputs by the equations, token by token; gradients by finite differences of those.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcx.layers import RWKV6ChannelMix, RWKV7ChannelMix
from lcx.mixers import GLA, RWKV5, RWKV6, RWKV7, DeltaNet, LinearAttention, RetNet
from lcx.mixers.rwkv7 import FirstValues
from lcx.positions import NoPE
from lcx.types import Context, Dims

D, H, T = 16, 2, 40
DIMS = Dims(D, layers=3, layer=1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def heads(x):
    return x.reshape(*x.shape[:-1], H, -1)


def flat(x):
    return x.reshape(*x.shape[:-2], -1)


def rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def group_norm(x, eps=64e-5):
    """One group a head."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def before(x):
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def outer(a, b):
    return a[..., :, None] * b[..., None, :]


def read(q, S):
    return np.einsum("hk,hkv->hv", q, S)


def recur(step, width, values, *tokens):
    """Outputs of step(S, token) -> (S, o) from an empty state, [T H V]."""
    S, outputs = np.zeros((H, width, values)), []
    for token in zip(*tokens, strict=True):
        S, o = step(S, *token)
        outputs.append(o)
    return np.array(outputs)


# arXiv:2312.06635, section 4.4
def gla(p, x):
    q, k, v = (heads(x @ p[n]) for n in "qkv")
    logit = x @ p["decay_in"] @ p["decay_out"] + p["decay_bias"]
    alpha = heads(sigmoid(logit) ** (1 / 16))

    def step(S, q, k, v, alpha):
        S = alpha[..., None] * S + outer(k, v)
        return S, read(q * k.shape[-1] ** -0.5, S)

    o = recur(step, k.shape[-1], v.shape[-1], q, k, v, alpha)
    return (silu(x @ p["gate"]) * flat(rms(o) * p["scale"])) @ p["out"]


# arXiv:2307.08621, equations 6 to 8; without rotation
def retnet(p, x):
    q, k, v = (heads(x @ p[n]) for n in "qkv")
    gamma = 1 - 2.0 ** (-5 - np.arange(H))

    def step(S, q, k, v):
        S = gamma[:, None, None] * S + outer(k, v)
        return S, read(q * k.shape[-1] ** -0.5, S)

    o = recur(step, k.shape[-1], v.shape[-1], q, k, v)
    return (silu(x @ p["gate"]) * flat(rms(o))) @ p["out"]


# arXiv:2006.16236, equation 9, by the kernel of each pair
def linear(kernel):
    def mixer(p, x):
        q, k, v = (heads(x @ p[n]) for n in "qkv")
        o = np.zeros_like(v)
        for t in range(T):
            w = kernel(q[t][None], k[: t + 1])  # [t + 1, H]
            o[t] = np.einsum("sh,shv->hv", w, v[: t + 1]) / (w.sum(0)[:, None] + 1e-6)
        return flat(o) @ p["out"]

    return mixer


def elu(q, k):
    return (np.where(q > 0, q + 1, np.exp(q)) * np.where(k > 0, k + 1, np.exp(k))).sum(-1)


def relu(q, k):
    return (np.maximum(q, 0) * np.maximum(k, 0)).sum(-1)


def softmaxes(q, k):
    def of(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    return (of(q) * of(k) + of(-q) * of(-k)).sum(-1)


def taylor(q, k):
    s = (q * k).sum(-1) / np.sqrt(q.shape[-1])
    return 1 + s + s**2 / 2


# arXiv:2406.06484, equations 1 to 4 and section 3.4
def delta(p, x):
    qkv = np.concatenate([x @ p[n] for n in "qkv"], axis=-1)
    padded = np.concatenate([np.zeros((3, qkv.shape[1])), qkv])
    mixed = silu(sum(p["conv"][i] * padded[i : i + T] for i in range(4)))
    q, k, v = (heads(a) for a in np.split(mixed, 3, axis=-1))
    q, k = (a / np.sqrt((a**2).sum(-1, keepdims=True) + 1e-6) for a in (q, k))

    def step(S, q, k, v, beta):
        S = S - beta[:, None, None] * outer(k, read(k, S)) + beta[:, None, None] * outer(k, v)
        return S, read(q * k.shape[-1] ** -0.5, S)

    o = recur(step, k.shape[-1], v.shape[-1], q, k, v, sigmoid(x @ p["beta"]))
    return flat(rms(o) * p["scale"]) @ p["out"]


# arXiv:2404.05892, section 4
def rwkv(p, r, k, v, g, w):
    u = p["bonus"]

    def step(S, r, k, v, w):
        new = outer(k, v)
        return w[..., None] * S + new, read(r, S + u[..., None] * new)

    o = recur(step, D // H, D // H, *(heads(a) for a in (r, k, v, w)))
    return ((flat(group_norm(o)) * p["scale"] + p["bias"]) * silu(g)) @ p["out"]


def rwkv5(p, x):
    last = before(x)
    mixed = {n: x * p[f"mix_{n}"] + last * (1 - p[f"mix_{n}"]) for n in "rkvg"}
    r, k = mixed["r"] @ p["receptance"], mixed["k"] @ p["key"]
    v, g = mixed["v"] @ p["value"], mixed["g"] @ p["gate"]
    w = np.exp(-np.exp(p["decay"].reshape(-1)))
    return rwkv(p, r, k, v, g, np.broadcast_to(w, (T, D)))


def rwkv6(p, x):
    difference = before(x) - x
    low = np.tanh((x + difference * p["mix_x"]) @ p["mix_in"]).reshape(T, 5, -1)
    more = np.einsum("tmr,mrd->mtd", low, p["mix_out"])
    xw, xk, xv, xr, xg = (x + difference * (p[f"mix_{n}"] + more[i]) for i, n in enumerate("wkvrg"))
    w = np.exp(-np.exp(p["decay"] + np.tanh(xw @ p["decay_in"]) @ p["decay_out"]))
    r, k, v = xr @ p["receptance"], xk @ p["key"], xv @ p["value"]
    return rwkv(p, r, k, v, xg @ p["gate"], w)


class LaterRWKV7(RWKV7):
    """A layer after the first, whose values are one more parameter."""

    def init(self, dims, rngs):
        values = nnx.Param(jax.random.normal(jax.random.key(0), (T, D)))
        return nnx.Dict(values=values, **super().init(dims, rngs))

    def __call__(self, params, x, ctx, state=None):
        first = FirstValues(params["values"][...][None], jnp.ones((), bool))
        return self.share(params, x, ctx, state, first)[0]


# arXiv:2503.14456, equations 4 to 22
def rwkv7(p, x):
    difference = before(x) - x
    xr, xw, xk, xv, xa, xg = (x + difference * p[f"mix_{n}"] for n in "rwkvag")
    r, k, v = xr @ p["receptance"], xk @ p["key"], xv @ p["value"]
    w = np.exp(
        -np.exp(-0.5) * sigmoid(p["decay"] + np.tanh(xw @ p["decay_low.down"]) @ p["decay_low.up"])
    )
    if "values" in p:
        share = sigmoid(p["first"] + xv @ p["first_low.down"] @ p["first_low.up"])
        v = v + (p["values"] - v) * share
    a = sigmoid(p["rate"] + xa @ p["rate_low.down"] @ p["rate_low.up"])
    g = sigmoid(xg @ p["gate_low.down"]) @ p["gate_low.up"]
    kappa = heads(k * p["removal"])
    kappa = kappa / np.sqrt((kappa**2).sum(-1, keepdims=True))
    k = k * (1 + (a - 1) * p["replaced"])

    def step(S, r, w, k, v, kappa, a):
        # the paper's state is the transpose of ours: S (diag(w) - kappa^T (a * kappa)) + v^T k
        S = w[..., None] * S - outer(a * kappa, read(kappa, S)) + outer(k, v)
        return S, read(r, S)

    r, w, k, v, a = (heads(b) for b in (r, w, k, v, a))
    o = flat(group_norm(recur(step, D // H, D // H, r, w, k, v, kappa, a)))
    own = (r * k * p["bonus"]).sum(-1, keepdims=True) * v
    return ((o * p["scale"] + p["bias"] + flat(own)) * g) @ p["out"]


# arXiv:2404.05892, section 4: the channel mix
def rwkv6_channel(p, x):
    difference = before(x) - x
    k, r = (x + difference * p[f"mix_{n}"] for n in "kr")
    return sigmoid(r @ p["receptance"]) * (np.maximum(k @ p["key"], 0) ** 2 @ p["value"])


# arXiv:2503.14456, equations 24 to 25
def rwkv7_channel(p, x):
    k = (x + (before(x) - x) * p["mix"]) @ p["key"]
    return np.maximum(k, 0) ** 2 @ p["value"]


EQUATIONS = {
    GLA(H, rank=4): gla,
    RetNet(H, position=NoPE()): retnet,
    LinearAttention(H): linear(elu),
    LinearAttention(H, feature_map="relu"): linear(relu),
    LinearAttention(H, feature_map="softmax"): linear(softmaxes),
    LinearAttention(H, feature_map="taylor"): linear(taylor),
    DeltaNet(H): delta,
    RWKV5(H): rwkv5,
    RWKV6(H, mix_rank=4, decay_rank=6): rwkv6,
    RWKV7(H): rwkv7,
    LaterRWKV7(H, decay_rank=6, rate_rank=7, first_rank=5, gate_rank=9): rwkv7,
    RWKV6ChannelMix(24): rwkv6_channel,
    RWKV7ChannelMix(24): rwkv7_channel,
}


def leaves(params):
    """Parameters by name in float64; a linear map by its own name."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in paths]
    names = [n.removesuffix(".value").removesuffix(".kernel") for n in names]
    return {n: np.asarray(a, np.float64) for n, (_, a) in zip(names, paths, strict=True)}


@pytest.mark.parametrize("mixer", EQUATIONS, ids=repr)
def test_outputs_and_gradients_follow_the_equations(mixer):
    rng = np.random.default_rng(0)
    with nnx.use_eager_sharding(False):
        params = mixer.init(DIMS, nnx.Rngs(0))
    params = jax.tree.map(lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(a.dtype), params)
    x, probe = rng.standard_normal((2, T, D))

    def loss(params, x):
        y = mixer(params, x[None], Context.of(jnp.arange(T)[None])).x
        return (y[0] * probe.astype(np.float32)).sum(), y[0]

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, y), gradients = run(params, jnp.asarray(x, jnp.float32))
    equation, exact = EQUATIONS[mixer], leaves(params)
    expected = equation(exact, x)
    assert np.abs(y - expected).max() < 5e-6 * np.abs(expected).max()  # measured: up to 7.4e-7

    # Along a random direction of every array at once, the slope is the sum of the gradients' parts
    slopes, got = {}, leaves(gradients[0]) | {"x": np.asarray(gradients[1], np.float64)}
    for name, value in (exact | {"x": x}).items():
        step = 1e-6 * rng.standard_normal(value.shape)
        sides = []
        for sign in (1, -1):
            moved = exact | {"x": x} | {name: value + sign * step}
            moved_x = moved.pop("x")
            sides.append((equation(moved, moved_x) * probe).sum())
        slopes[name] = (sides[0] - sides[1]) / 2e-6, (got[name] * step).sum() / 1e-6
    largest = max(abs(numeric) for numeric, _ in slopes.values())
    for name, (numeric, ours) in slopes.items():
        # measured: up to 2.3e-6
        assert abs(numeric - ours) < 1e-5 * max(abs(numeric), 0.1 * largest), name
