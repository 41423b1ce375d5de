"""First values of the recurrences, against the formulas of the original code.

RWKV: BlinkDL's RWKV-LM (v5, v6 and v7 training code). Mamba-2 and Gated DeltaNet: state-spaces'
mamba and flash-linear-attention. RG-LRU: RecurrentGemma. Where the code draws at random, the range,
the mean and the spread are compared, of enough numbers for the bounds to be safe.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from lcx.block import Block
from lcx.layers import RWKV6ChannelMix, RWKV7ChannelMix
from lcx.mixers import GLA, RGLRU, RWKV5, RWKV6, RWKV7, GatedDeltaNet, Lightning, Mamba2
from lcx.model import LM
from lcx.types import Dims

D, H, L = 64, 4, 3
CHANNEL = np.arange(D)
LINE = CHANNEL / (D - 1)


def first_values(sublayer, layer=1, width=D, seed=0):
    dims = Dims(width, layers=L, layer=layer)

    @jax.jit
    def init():
        with nnx.use_eager_sharding(False):
            return sublayer.init(dims, nnx.Rngs(seed))

    paths = jax.tree_util.tree_leaves_with_path(init())
    names = (jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in paths)
    names = [n.removesuffix(".value").removesuffix(".kernel") for n in names]
    return {n: np.asarray(a, np.float64) for n, (_, a) in zip(names, paths, strict=True)}


def assert_equal(p, name, expected):
    np.testing.assert_allclose(p[name].ravel(), np.broadcast_to(expected, D), atol=1e-5)


def assert_orthogonal(weight, gain):
    np.testing.assert_allclose(weight.T @ weight, gain**2 * np.eye(D), atol=1e-4)


@pytest.mark.parametrize("layer", range(L))
@pytest.mark.parametrize("sublayer", [RWKV5(H), RWKV6(H)], ids=repr)
def test_rwkv_5_and_6(sublayer, layer):
    p, depth, to_end = first_values(sublayer, layer), layer / (L - 1), 1 - layer / L
    assert_equal(p, "decay", -6 + 5 * LINE ** (0.7 + 1.3 * depth))
    assert_equal(p, "bonus", depth * (1 - LINE) + 0.1 * ((CHANNEL + 1) % 3 - 1))
    assert_equal(p, "scale", ((1 + layer) / L) ** 0.7)
    mixes = {
        "k": (CHANNEL / D) ** to_end,
        "v": (CHANNEL / D) ** to_end + 0.3 * depth,
        "r": (CHANNEL / D) ** (0.5 * to_end),
        "g": (CHANNEL / D) ** (0.5 * to_end),
    }
    if isinstance(sublayer, RWKV5):
        for name, mix in mixes.items():
            assert_equal(p, f"mix_{name}", mix)
    else:
        first = {"w": mixes["k"], **mixes}
        for name in "wkvrg":
            assert_equal(p, f"mix_{name}", 1 - first[name])
        assert_equal(p, "mix_x", 1 - mixes["k"])
        assert (p["mix_in"] == 0).all()
        assert (p["decay_in"] == 0).all()
        for name in ("mix_out", "decay_out"):
            assert np.abs(p[name]).max() <= 0.01
            assert p[name].std() == pytest.approx(0.01 / np.sqrt(3), rel=0.05)
    for name, gain in {"receptance": 1, "key": 0.1, "value": 1, "gate": 0.1}.items():
        assert_orthogonal(p[name], gain)
    assert (p["out"] == 0).all()


@pytest.mark.parametrize("layer", range(L))
def test_rwkv_6_channel_mix(layer):
    p = first_values(RWKV6ChannelMix(), layer)
    for name in ("mix_k", "mix_r"):
        assert_equal(p, name, 1 - (CHANNEL / D) ** ((1 - layer / L) ** 3))
    assert p["key"].shape == (D, 7 * D // 2)
    assert (p["receptance"] == 0).all()
    assert (p["value"] == 0).all()


@pytest.mark.parametrize("layer", range(L))
def test_rwkv_7(layer):
    p, depth, to_end = first_values(RWKV7(H), layer), layer / (L - 1), 1 - layer / L
    zigzag = (CHANNEL % (D // H) - (D // H - 1) / 2) / ((D // H - 1) / 2)
    zigzag = zigzag * np.abs(zigzag)
    powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    for name, power in powers.items():
        assert_equal(p, f"mix_{name}", 1 - (CHANNEL / D) ** (power * to_end))
    assert_equal(p, "decay", -6 + 6 * LINE ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag)
    assert_equal(p, "rate", -0.19 + 0.3 * zigzag + 0.4 * (LINE - 0.5))
    assert_equal(p, "first", 0.73 - 0.4 * (LINE - 0.5))
    assert_equal(p, "removal", 0.71 - 0.1 * (LINE - 0.5))
    assert_equal(p, "replaced", 1.02)
    assert_equal(p, "bonus", -0.04)
    assert_equal(p, "scale", ((1 + layer) / L) ** 0.7)
    for name, bound in {"receptance": 0.5, "key": 0.05, "value": 0.5}.items():
        assert np.abs(p[name]).max() <= bound / np.sqrt(D)
        assert p[name].std() == pytest.approx(bound / np.sqrt(3 * D), rel=0.05)
    for name in ("decay_low", "rate_low", "first_low", "gate_low"):
        up = p[f"{name}.up"]  # [rank, D], of orthogonal rows
        gain = 0.1 * max(1, np.sqrt(len(up) / D))
        np.testing.assert_allclose(up @ up.T, gain**2 * np.eye(len(up)), atol=1e-5)
        assert (p[f"{name}.down"] == 0).all()
    assert (p["out"] == 0).all()
    channel = first_values(RWKV7ChannelMix(), layer)
    assert_equal(channel, "mix", 1 - (CHANNEL / D) ** (to_end**4))
    assert np.abs(channel["key"]).max() <= 0.5 / np.sqrt(D)
    assert (channel["value"] == 0).all()


def test_steps_of_time_are_log_uniform_and_rates_uniform():
    many = {Mamba2(8, head_width=1): (1, 16), GatedDeltaNet(512): (0, 16)}
    for mixer, (low, high) in many.items():
        p = first_values(mixer, width=512)
        step = np.log(np.log1p(np.exp(p["step_bias"])))
        assert step.min() >= np.log(1e-3) - 1e-3
        assert step.max() <= np.log(1e-1) + 1e-3
        assert step.mean() == pytest.approx(np.log(1e-2), rel=0.05)
        assert step.std() == pytest.approx(np.log(100) / np.sqrt(12), rel=0.1)
        rate = np.exp(p["log_rate"])
        assert low <= rate.min() < low + 1
        assert high - 1 < rate.max() <= high
        assert rate.mean() == pytest.approx((low + high) / 2, rel=0.1)
        assert np.abs(p["conv"]).max() <= 0.5
        assert p["conv"].std() == pytest.approx(0.5 / np.sqrt(3), rel=0.05)
    assert (first_values(Mamba2(8, 16))["skip"] == 1).all()


def test_rg_lru():
    p = first_values(RGLRU(H), width=512)
    square = np.exp(-2 * np.log1p(np.exp(p["rate"])))  # a^2, of a gate wide open to the 1/8
    assert 0.9**2 <= square.min() < 0.82
    assert 0.99 < square.max() <= 0.999**2 + 1e-6
    assert square.mean() == pytest.approx((0.9**2 + 0.999**2) / 2, rel=0.02)
    assert p["conv"].std() == pytest.approx(np.sqrt(0.01 / 4), rel=0.1)
    assert p["input_gate.weight"].std() == pytest.approx(np.sqrt(0.01 / 128), rel=0.05)
    assert (p["recurrence_gate.bias"] == 0).all()


def test_constant_and_even_decays():
    for layer in range(L):
        slope = 2.0 ** (-8 * np.arange(1, H + 1) / H) * (1 - layer / (L - 1 + 1e-5) + 1e-5)
        p = first_values(Lightning(H), layer)
        np.testing.assert_allclose(np.exp(p["log_rate"]), slope, rtol=1e-5)
    assert (first_values(GLA(H))["decay_bias"] == 0).all()  # sigmoid(0)^(1/16): 0.958 a token


@pytest.mark.parametrize("sublayer", [Mamba2(8, 16), GatedDeltaNet(H), RGLRU(H), GLA(H)], ids=repr)
def test_what_goes_back_into_the_stream_is_smaller_in_deep_models(sublayer):
    out = first_values(sublayer)["out"]
    assert out.std() == pytest.approx((2 * L * len(out)) ** -0.5, rel=0.05)


def test_matrices_are_factorised_one_by_one():
    """Several at once wait for each other's threads for ever (`lcx.dense.orthogonal`)."""
    pattern = tuple(Block(mixer) for mixer in (RWKV5(H), RWKV6(H), RWKV7(H)))
    init = jax.jit(LM(width=D, pattern=pattern, repeats=3).init)
    text = init.lower(jax.random.key(0)).compile().as_text()
    found = [line.split("custom-call(")[0] for line in text.splitlines() if "geqrf_ffi" in line]
    assert len(found) >= len(pattern)
    assert all(f"(f32[{D}," in call for call in found), found  # and not f32[3,
