"""RWKV-4's state after a text in pieces, against transformers', in fp32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.huggingface import Pretrained
from tests.parity.against_torch import NEEDED, randomise, stream
from tests.parity.families import SMALL

torch = pytest.importorskip("torch", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)

LENGTH = 96


def test_streaming_in_pieces(tmp_path):
    """Both read the text in pieces, cut differently, and end with the same state."""
    config = transformers.RwkvConfig(**SMALL["rwkv"].settings)
    rwkv = transformers.RwkvForCausalLM(config).eval()
    randomise(rwkv)
    rwkv.save_pretrained(tmp_path)
    weights = Pretrained(str(tmp_path))
    model = weights.model()
    # one row: transformers mixes up the rows of a batch in pieces of one token
    row = np.random.default_rng(1).integers(0, model.vocabulary, (1, LENGTH), np.int32)
    expected, theirs = [], None
    with torch.no_grad():
        for piece in torch.from_numpy(row).long().split([40, 1, 1, 54], dim=1):
            out = rwkv(piece, state=theirs, use_cache=True)
            expected.append(out.logits.numpy())
            theirs = out.state
    expected = np.concatenate(expected, axis=1)

    logits, state = stream(
        jax.jit(partial(model)), weights.load(model), row, model.init_state(1, LENGTH)
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)  # measured: 2e-6

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
