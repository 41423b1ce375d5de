"""What `lcx.checking.bounds` measures, as assertions."""

import jax
import numpy as np

from lcx.checking.bounds import ROUNDINGS, floating


def assert_within(error: float, bound: float, what: str = "") -> None:
    """An error that was measured and the most that it may be."""
    assert error <= bound, f"{what}: error {error:.1e}, at most {bound:.1e}"


def assert_rounded(got, expected, units) -> None:
    """Each array within ROUNDINGS of its unit, a number of the tree `units`; nothing is NaN."""
    wanted = jax.tree_util.tree_leaves_with_path(expected)
    for (path, b), a, unit in zip(
        wanted, jax.tree.leaves(got), jax.tree.leaves(units), strict=True
    ):
        name = jax.tree_util.keystr(path)
        if not floating(b):
            np.testing.assert_array_equal(a, b, name)
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), name
        assert_within(np.abs(a - b).max(initial=0), ROUNDINGS * unit, name)
