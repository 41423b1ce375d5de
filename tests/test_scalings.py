"""Scalings of rotary frequencies against values worked out by hand, and what they refuse."""

import numpy as np
import pytest

from lcx.positions import NTK, Llama3, PositionInterpolation, RoPE, YaRN
from lcx.positions.scaling import base_inv_freq


def slowed(scaling, theta: float = 1e4, width: int = 128) -> np.ndarray:
    """The scaled frequencies as parts of the unscaled ones."""
    return scaling.inv_freq(theta, width) / base_inv_freq(theta, width)


def test_linear_slows_all_alike():
    np.testing.assert_allclose(slowed(PositionInterpolation(8.0)), 1 / 8)


def test_ntk_changes_the_base():
    scaled = 1e4 * 4 ** (128 / 126)
    np.testing.assert_allclose(NTK(4.0).inv_freq(1e4, 128), base_inv_freq(scaled, 128), rtol=1e-13)
    assert slowed(NTK(4.0))[0] == 1
    np.testing.assert_allclose(slowed(NTK(4.0))[-1], 1 / 4)
    assert NTK(4.0).inv_freq(1e4, 2) == 1  # a single pair


def test_yarn_mixes_between_two_pairs():
    yarn = YaRN(16.0, original=4096)
    # pairs 20.9 and 45.03 turn 32 times and once within 4,096 tokens: the ramp is from 20 to 46
    expected = 1 - (1 - 1 / 16) * np.clip((np.arange(64) - 20) / 26, 0, 1)
    np.testing.assert_allclose(slowed(yarn), expected, rtol=1e-13)
    np.testing.assert_allclose(yarn.magnitude(), 1.2772588722)
    assert YaRN(16.0, 4096, attention_factor=1.5).magnitude() == 1.5


def test_llama3_mixes_by_turns():
    got = slowed(Llama3(8.0, original=8192), theta=5e5)
    assert (got[:29] == 1).all()
    np.testing.assert_allclose(got[29], 0.82817, rtol=1e-5)
    np.testing.assert_allclose(got[35:], 1 / 8)


def test_a_factor_of_one_changes_nothing():
    for scaling in (PositionInterpolation(1.0), NTK(1.0), YaRN(1.0, 4096), Llama3(1.0, 4096)):
        np.testing.assert_array_equal(slowed(scaling), 1)
        assert scaling.magnitude() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PositionInterpolation(0.5),
            "PositionInterpolation scaling by 0.5: the factor must be at least 1",
        ),
        (lambda: NTK(float("inf")), "NTK scaling by inf: the factor must be at least 1"),
        (lambda: YaRN(float("nan"), 64), "YaRN scaling by nan: the factor must be at least 1"),
        (lambda: Llama3(0.0, 64), "Llama3 scaling by 0.0: the factor must be at least 1"),
        (lambda: YaRN(2.0, 6), "turns less than 1.0 times in an original length of 6"),
        (lambda: YaRN(2.0, 64, beta_fast=1.0), "beta_slow must be positive and below beta_fast"),
        (lambda: YaRN(2.0, 64, attention_factor=0.0), "attention_factor must be positive, not 0.0"),
        (lambda: Llama3(2.0, 64, low=4.0), "low must be positive and below high"),
        (lambda: Llama3(2.0, 0), "original must be at least 1, not 0"),
        (lambda: RoPE(fraction=0.0), r"fraction must lie in \(0, 1\], not 0.0"),
        (lambda: RoPE(fraction=0.5).check(6), "heads of 6, of which 0.5 is 3, are odd"),
        (lambda: RoPE(fraction=0.1).check(8), "heads of 8, of which 0.1 is 0, are odd"),
        (lambda: RoPE().check(7), "heads of 7 are odd"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
