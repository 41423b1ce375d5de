"""The laws of position schemes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.attention import attention
from lcx.sparsity.past import bias_of
from lcx.spec import describe
from lcx.types import Context
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

    def attended(positions):
        marked = scheme(q, k, Context(positions, lengths=jnp.full((1, 9), 500)))
        bias = bias_of(scheme, 2, positions, positions)
        return attention(*marked, k, bias=bias, decay=scheme.decay(16))

    for there, at_home in zip(attended(here + shift), attended(here), strict=True):
        np.testing.assert_allclose(there, at_home, atol=2e-5)


@every_scheme
def test_dtypes_and_shapes_are_kept(scheme):
    q, k = (a.astype(jnp.bfloat16) for a in qk())
    for before, after in zip((q, k), scheme(q, k, Context(jnp.arange(9)[None])), strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
