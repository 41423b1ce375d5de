"""GatedConv against transformers' Lfm2ShortConv."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcx.mixers import GatedConv
from lcx.types import Context, Dims
from tests.parity.against_torch import NEEDED, assert_leaves_close, randomise

torch = pytest.importorskip("torch", reason=NEEDED)
lfm2 = pytest.importorskip("transformers.models.lfm2.modeling_lfm2", reason=NEEDED)

WIDTH, LENGTH, MIXER = 16, 23, GatedConv(taps=3)


def to_lcx(tensors):
    kernels = np.split(tensors["in_proj.weight"].detach().numpy().T, 3, axis=1)
    dense = dict(zip("bcx", kernels, strict=True))
    dense["out"] = tensors["out_proj.weight"].detach().numpy().T
    conv = tensors["conv.weight"].detach().numpy()[:, 0].T
    with nnx.use_eager_sharding(False):
        params = MIXER.init(Dims(WIDTH), nnx.Rngs(0))
    for name, kernel in dense.items():
        params[name].kernel[...] = jnp.array(kernel)
    params.conv[...] = jnp.array(conv)
    return params


def test_outputs_and_gradients():
    config = lfm2.Lfm2Config(
        hidden_size=WIDTH, conv_L_cache=MIXER.taps, conv_bias=False, num_hidden_layers=1,
        layer_types=["conv"], num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    module = lfm2.Lfm2ShortConv(config, layer_idx=0)
    randomise(module)
    params = to_lcx(dict(module.named_parameters()))
    rng = np.random.default_rng(1)
    x, probe = rng.normal(size=(2, 2, LENGTH, WIDTH)).astype(np.float32)

    theirs = torch.from_numpy(x).requires_grad_()
    expected = module(theirs)
    (expected * torch.from_numpy(probe)).sum().backward()

    def loss(params, x):
        y, _ = MIXER(params, x, Context.of(jnp.arange(LENGTH)[None].repeat(2, 0)))
        return (y * probe).sum(), y

    (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    np.testing.assert_allclose(y, expected.detach(), rtol=0, atol=2e-6)  # measured: 4e-7
    by_name = {name: p.grad for name, p in module.named_parameters()}
    assert_leaves_close(gradients[0], to_lcx(by_name), within=2e-6)  # measured: 4e-7
    assert_leaves_close(gradients[1], theirs.grad.numpy(), within=2e-6)  # measured: 3e-7
