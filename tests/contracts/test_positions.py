"""The laws of position schemes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.spec import describe
from tests.contracts.cases import SCHEMES

every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=describe)


def qk(heads: int = 2, width: int = 16, length: int = 9):
    keys = jax.random.split(jax.random.key(3), 2)
    return (jax.random.normal(k, (1, length, heads, width)) for k in keys)


@every_scheme
@pytest.mark.parametrize("shift", [1, 1000, 2**20 + 3, 2**30])
def test_scores_depend_on_distance_alone(scheme, shift):
    q, k = qk()
    here = jnp.arange(9)[None]

    def scores(positions):
        rotated_q, rotated_k = scheme(q, k, positions)
        return np.asarray(jnp.einsum("bthk,bshk->bhts", rotated_q, rotated_k))

    np.testing.assert_allclose(scores(here + shift), scores(here), atol=2e-5)


@every_scheme
def test_dtypes_and_shapes_are_kept(scheme):
    q, k = (a.astype(jnp.bfloat16) for a in qk())
    for before, after in zip((q, k), scheme(q, k, jnp.arange(9)[None]), strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
