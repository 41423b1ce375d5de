"""RWKV-4, time mix and channel mix, against transformers' RWKV, in fp32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.block import Block
from lcx.layers import LayerNorm, RWKVChannelMix
from lcx.mixers import RWKV4
from lcx.model import LM
from lcx.types import Batch
from tests.parity.against_torch import (
    NEEDED,
    assert_leaves_close,
    loss_and_gradients,
    randomise,
    stream,
    to_lcx,
)

torch = pytest.importorskip("torch", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)

LENGTH = 96
LOGITS = 1e-5  # measured: 2.4e-6 whole, 1.8e-6 in pieces, of logits of standard deviation 1.1

BLOCK_NORM = LayerNorm(eps=1e-3)  # large enough that the logits show it
MODEL = LM(
    vocab=97,
    width=64,
    pattern=(Block(RWKV4(), RWKVChannelMix(hidden=112), BLOCK_NORM),),
    repeats=3,
    tied=False,
    norm=LayerNorm(eps=1e-5),  # transformers' last norm has this eps whatever its config says
    embed_norm=BLOCK_NORM,
)
CALL = jax.jit(partial(MODEL))

NAMES = {
    "embed.embedding": "rwkv.embeddings.weight",
    "embed_norm.scale": "rwkv.blocks.0.pre_ln.weight",
    "embed_norm.bias": "rwkv.blocks.0.pre_ln.bias",
    "mixer_norm.scale": "rwkv.blocks.{}.ln1.weight",
    "mixer_norm.bias": "rwkv.blocks.{}.ln1.bias",
    "mixer.decay": "rwkv.blocks.{}.attention.time_decay",
    "mixer.bonus": "rwkv.blocks.{}.attention.time_first",
    "mixer.mix_k": "rwkv.blocks.{}.attention.time_mix_key",
    "mixer.mix_v": "rwkv.blocks.{}.attention.time_mix_value",
    "mixer.mix_r": "rwkv.blocks.{}.attention.time_mix_receptance",
    "mixer.key.kernel": "rwkv.blocks.{}.attention.key.weight",
    "mixer.value.kernel": "rwkv.blocks.{}.attention.value.weight",
    "mixer.receptance.kernel": "rwkv.blocks.{}.attention.receptance.weight",
    "mixer.out.kernel": "rwkv.blocks.{}.attention.output.weight",
    "channel_norm.scale": "rwkv.blocks.{}.ln2.weight",
    "channel_norm.bias": "rwkv.blocks.{}.ln2.bias",
    "channel.mix_k": "rwkv.blocks.{}.feed_forward.time_mix_key",
    "channel.mix_r": "rwkv.blocks.{}.feed_forward.time_mix_receptance",
    "channel.key.kernel": "rwkv.blocks.{}.feed_forward.key.weight",
    "channel.receptance.kernel": "rwkv.blocks.{}.feed_forward.receptance.weight",
    "channel.value.kernel": "rwkv.blocks.{}.feed_forward.value.weight",
    "norm.scale": "rwkv.ln_out.weight",
    "norm.bias": "rwkv.ln_out.bias",
    "head.kernel": "head.weight",
}


@pytest.fixture(scope="module")
def rwkv():
    config = transformers.RwkvConfig(
        vocab_size=MODEL.vocabulary,
        context_length=LENGTH,
        hidden_size=MODEL.width,
        num_hidden_layers=MODEL.repeats,
        intermediate_size=MODEL.pattern[0].channel.hidden,
        layer_norm_epsilon=BLOCK_NORM.eps,
        rescale_every=0,  # otherwise it halves weights and activations in evaluation
        tie_word_embeddings=MODEL.tied,
    )
    module = transformers.RwkvForCausalLM(config).eval()
    randomise(module)
    return module


@pytest.fixture(scope="module")
def params(rwkv):
    return to_lcx(MODEL, dict(rwkv.named_parameters()), NAMES)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, MODEL.vocabulary, (2, LENGTH), np.int32)


def test_logits(rwkv, params, tokens):
    with torch.no_grad():
        expected = rwkv(torch.from_numpy(tokens).long()).logits.numpy()
    logits = CALL(params, Batch(tokens)).x
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS)


def test_loss_and_gradients(rwkv, params, tokens):
    ids = torch.from_numpy(tokens).long()
    expected = rwkv(ids, labels=ids, use_cache=False).loss  # it shifts the labels itself
    rwkv.zero_grad()
    expected.backward()
    gradients = {name: p.grad for name, p in rwkv.named_parameters()}

    loss, actual = loss_and_gradients(MODEL, params, tokens)
    assert loss == pytest.approx(expected.item(), abs=2e-6)  # measured: 5e-7, one ulp
    # measured: 1.2e-6
    assert_leaves_close(actual, to_lcx(MODEL, gradients, NAMES), within=5e-6)


def test_streaming_in_pieces(rwkv, params, tokens):
    """Both read the text in pieces, cut differently, and end with the same state."""
    row = tokens[:1]  # transformers mixes up the rows of a batch in pieces of one token
    expected, theirs = [], None
    with torch.no_grad():
        for piece in torch.from_numpy(row).long().split([40, 1, 1, 54], dim=1):
            out = rwkv(piece, state=theirs, use_cache=True)
            expected.append(out.logits.numpy())
            theirs = out.state
    expected = np.concatenate(expected, axis=1)

    logits, state = stream(CALL, params, row, MODEL.init_state(1, LENGTH))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS)

    layers = jax.tree.map(lambda *a: jnp.stack(a), *state.layers)
    mixer, channel = layers
    layer_first = [a.permute(2, 0, 1).numpy() for a in theirs]
    channel_last, mixer_last, numerator, denominator, exponent = layer_first
    # numerator and denominator are e^exponent times the stored ones: that split is not unique
    wkv = mixer.wkv
    average, log_sum = numerator / denominator, exponent + np.log(denominator)
    for actual, expected in (
        (channel.last, channel_last),
        (mixer.last, mixer_last),
        (wkv.numerator / wkv.denominator, average),
        (wkv.exponent + np.log(wkv.denominator), log_sum),
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)  # measured: 2e-6
