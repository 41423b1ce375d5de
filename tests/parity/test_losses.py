"""Label smoothing against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.losses import CrossEntropy
from lcx.types import Batch
from tests.parity.against_torch import NEEDED

torch = pytest.importorskip("torch", reason=NEEDED)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(2, 15, 40)).astype(np.float32) * 3
    targets = draw.integers(0, 40, (2, 15)).astype(np.int32)
    targets[0, :4] = -1
    batch = Batch(jnp.asarray(targets), targets=jnp.asarray(targets))
    loss = CrossEntropy(smoothing=smoothing)

    def ours(logits):
        sums = loss(logits, batch, lambda f, *per_token: f(*per_token))
        return sums.minimised / loss.divisor(batch)

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    there = torch.tensor(logits.reshape(-1, 40), requires_grad=True)
    wanted = torch.tensor(targets.reshape(-1), dtype=torch.long)
    theirs = torch.nn.functional.cross_entropy(
        there, wanted, ignore_index=-1, label_smoothing=smoothing
    )
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=2e-6)
    expected = there.grad.numpy().reshape(logits.shape)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=2e-6 * abs(expected).max())
