"""What the backward pass keeps of elementwise functions: their arguments, and no copies in fp32."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lcx.layers import MLP, GeGLU, RWKV7ChannelMix, RWKVChannelMix, SwiGLU
from lcx.layers.norms import NORMS, l2_normalise, rms_normalise, standardise
from lcx.ops.short_conv import short_conv
from lcx.types import Context, Dims, Policy

B, T, D, F = 2, 32, 16, 64
DIMS = Dims(D, policy=Policy(compute="bfloat16"))
X = jax.random.normal(jax.random.key(0), (B, T, D), jnp.bfloat16)


def kept(function, *arguments) -> Counter[str]:
    """The arrays of all tokens that a function keeps for its gradients."""
    _, pull = jax.vjp(function, *arguments)
    arrays = [x for x in jax.tree.leaves(pull) if x.size >= B * T * D]
    return Counter(f"{x.dtype} {x.size // (B * T)}" for x in arrays)


@pytest.mark.parametrize("norm", NORMS.values())
def test_a_norm_keeps_its_input(norm):
    module = norm().init(DIMS, nnx.Rngs(0))
    assert kept(lambda module, x: module(x), module, X) == {f"bfloat16 {D}": 1}


@pytest.mark.parametrize("function", [rms_normalise, l2_normalise, lambda x: standardise(x, 1e-5)])
def test_a_norm_without_parameters_keeps_its_input(function):
    assert kept(function, X) == {f"bfloat16 {D}": 1}


@pytest.mark.parametrize(
    ("channel", "wide"),
    # what projections gave, and what the last one reads
    [(SwiGLU(F), 3), (GeGLU(F), 3), (MLP(F), 2), (RWKVChannelMix(F), 2), (RWKV7ChannelMix(F), 2)],
)
def test_a_channel_mixer_keeps_what_matrices_gave_and_read(channel, wide):
    with nnx.use_eager_sharding(False):
        params = channel.init(DIMS, nnx.Rngs(0))
    ctx = Context(jnp.arange(T)[None])
    found = kept(lambda params, x: channel(params, x, ctx).x, params, X)
    assert found[f"bfloat16 {F}"] == wide
    assert not any(name.startswith("float32") for name in found)


def test_a_short_convolution_keeps_its_inputs_once():
    taps, starts = jnp.ones((4, D)), jnp.zeros((B, T), bool).at[:, 9].set(True)
    found = kept(lambda x, taps: short_conv(x, taps, starts=starts)[0], X, taps)
    assert found.total() == 1
    assert next(iter(found)).startswith("bfloat16")
