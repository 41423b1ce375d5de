"""Optimizers against torch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lcx.optim import AdamW, Muon
from tests.parity.against_torch import NEEDED

torch = pytest.importorskip("torch", reason=NEEDED)

SETTINGS = {"peak": 0.1, "weight_decay": 0.3, "warmup": 0, "schedule": "constant", "clip": 1e9}


def three_steps(ours, theirs, shape) -> tuple[np.ndarray, np.ndarray]:
    """How far a matrix goes under each, by the same gradients."""
    rng = np.random.default_rng(0)
    start, *gradients = (rng.normal(size=shape).astype(np.float32) for _ in range(4))
    params = nnx.Dict(w=nnx.Param(jnp.asarray(start), kind="matrix"))
    transform = ours.transform(10)
    state, update = transform.init(params), jax.jit(transform.update)
    other = torch.nn.Parameter(torch.tensor(start))
    optimizer = theirs([other])
    for gradient in gradients:
        tree = nnx.Dict(w=nnx.Param(jnp.asarray(gradient), kind="matrix"))
        updates, state = update(tree, state, params)
        params = optax.apply_updates(params, updates)
        other.grad = torch.tensor(gradient)
        optimizer.step()
    return np.asarray(params.w[...]) - start, other.detach().numpy() - start


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)], ids=str)
def test_muon(shape):
    def theirs(params):
        return torch.optim.Muon(
            params, lr=0.1, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )

    got, expected = three_steps(Muon(**SETTINGS), theirs, shape)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < 0.025  # torch iterates in bf16; measured: 0.005


def test_adamw():
    def theirs(params):
        return torch.optim.AdamW(params, lr=0.1, weight_decay=0.3, betas=(0.9, 0.95))

    got, expected = three_steps(AdamW(**SETTINGS), theirs, (16, 40))
    np.testing.assert_allclose(got, expected, atol=2e-6)
