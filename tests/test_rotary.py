import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.rotary import angles, rotate
from lcx.positions.scaling import base_inv_freq

PI = np.pi


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("farthest", [2**10, 2**20, 2**30, 2**31 - 1])
def test_angles_at_far_positions(theta, farthest):
    before = np.random.default_rng(0).integers(0, farthest // 2, 1000)
    positions = np.append(farthest - before, farthest).astype(np.int32)[None]
    inv_freq = base_inv_freq(theta, width=64)
    actual = np.asarray(angles(jnp.asarray(positions), inv_freq), np.float64)
    error = np.remainder(actual - positions[..., None] * inv_freq + PI, 2 * PI) - PI
    # measured: 4e-7 at 2^10 and 2^20, 6e-7 at 2^30, 8e-7 at 2^31
    assert np.abs(error).max() < 1e-6
    # small enough for cos and sin in fp32: half a turn, and what the fixed point leaves out
    assert np.abs(actual).max() < PI + 2 * PI * farthest / 2**32 + 1e-6


def test_angles_of_negative_positions_mirror_the_positive():
    positions = jnp.array([[1, 77, 1_000_003]])
    inv_freq = base_inv_freq(1e4, width=64)
    back, forth = (np.asarray(angles(p, inv_freq)) for p in (-positions, positions))
    np.testing.assert_allclose(np.exp(1j * back), np.exp(-1j * forth), rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [0, 1_000_000])
def test_scores_depend_on_the_distance_alone(offset):
    """One query and one key at every position: their scores are constant along diagonals."""
    length, width = 48, 64
    q, k = (jnp.tile(draw(1, 1, 1, width, seed=s), (1, length, 1, 1)) for s in (0, 1))
    angle = angles(offset + jnp.arange(length)[None], base_inv_freq(1e4, width))
    scores = np.einsum("bthk,bshk->ts", rotate(q, angle), rotate(k, angle))
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    exact = np.exp(1j * distance[..., None] * base_inv_freq(1e4, width))
    complex_q, complex_k = (np.asarray(x[0, 0, 0, :32] + 1j * x[0, 0, 0, 32:]) for x in (q, k))
    expected = (complex_q * complex_k.conj() * exact).real.sum(axis=-1)
    # measured: 3.6e-6 and 3.9e-6, of scores up to 12
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_rotation_is_a_complex_product():
    """Feature i and feature i + P are the real and the imaginary part; the rest pass through."""
    pairs = 3
    x, angle = draw(2, 5, 4, 10), draw(2, 5, pairs, seed=1)
    actual = np.asarray(rotate(x, angle, magnitude=1.25))
    x, angle = np.asarray(x, np.float64), np.asarray(angle, np.float64)[:, :, None]
    z = 1.25 * np.exp(1j * angle) * (x[..., :pairs] + 1j * x[..., pairs : 2 * pairs])
    expected = np.concatenate([z.real, z.imag], axis=-1)
    np.testing.assert_allclose(actual[..., : 2 * pairs], expected, rtol=0, atol=1e-6)  # 2e-7
    np.testing.assert_array_equal(actual[..., 2 * pairs :], x[..., 2 * pairs :])


def test_neighbours_turn_as_halves_do_after_a_permutation():
    pairs = 3
    x, angle = draw(2, 5, 4, 10), draw(2, 5, pairs, seed=1)
    order = np.array([0, 2, 4, 1, 3, 5, 6, 7, 8, 9])  # neighbours to halves
    turned = rotate(x, angle, 1.25, interleaved=True)
    halves = rotate(x[..., order], angle, 1.25)
    np.testing.assert_array_equal(turned[..., order], halves)
