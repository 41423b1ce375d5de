"""Multi-query attention, ALiBi and RoPE against transformers' Falcon, in fp32; slopes of others."""

from functools import cache, partial

import jax
import numpy as np
import pytest

from lcx.block import Block
from lcx.huggingface.positions import read_positions
from lcx.layers import MLP, LayerNorm
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.positions import ALiBi, RoPE
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

BATCH, LENGTH, WIDTH, HEADS = 2, 96, 64, 4
LOGITS = 1e-5

NAMES = {
    "embed.embedding": "transformer.word_embeddings.weight",
    "mixer_norm.scale": "transformer.h.{}.input_layernorm.weight",
    "mixer_norm.bias": "transformer.h.{}.input_layernorm.bias",
    "mixer.q.kernel": "transformer.h.{}.self_attention.q",
    "mixer.k.kernel": "transformer.h.{}.self_attention.k",
    "mixer.v.kernel": "transformer.h.{}.self_attention.v",
    "mixer.out.kernel": "transformer.h.{}.self_attention.dense.weight",
    "channel_norm.scale": "transformer.h.{}.post_attention_layernorm.weight",
    "channel_norm.bias": "transformer.h.{}.post_attention_layernorm.bias",
    "channel.up.kernel": "transformer.h.{}.mlp.dense_h_to_4h.weight",
    "channel.down.kernel": "transformer.h.{}.mlp.dense_4h_to_h.weight",
    "norm.scale": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
}


def split(tensors: dict) -> dict:
    """The fused projection, [H + 2, K] rows, as three."""
    apart = {}
    for name, tensor in tensors.items():
        if name.endswith("query_key_value.weight"):
            parts = tensor.split([WIDTH, WIDTH // HEADS, WIDTH // HEADS])
            stem = name.removesuffix("query_key_value.weight")
            apart |= {stem + n: p for n, p in zip("qkv", parts, strict=True)}
        else:
            apart[name] = tensor
    return apart


class Pair:
    """One model twice, with the same weights."""

    def __init__(self, alibi: bool):
        config = transformers.FalconConfig(
            vocab_size=97,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            layer_norm_epsilon=1e-3,
            alibi=alibi,
            multi_query=True,
            parallel_attn=False,
            new_decoder_architecture=False,
            bias=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",  # their eager form (5.23) adds the bias twice
        )
        norm = LayerNorm(eps=1e-3)
        position = read_positions(config.to_dict())
        assert position == (ALiBi(scale=0.25) if alibi else RoPE())
        mixer = SoftmaxAttention(heads=HEADS, kv_heads=1, position=position)
        self.model = LM(97, WIDTH, pattern=(Block(mixer, MLP(), norm),), repeats=2, norm=norm)
        self.torch = transformers.FalconForCausalLM(config).eval()
        randomise(self.torch)
        tensors = split(dict(self.torch.named_parameters()))
        self.params = to_lcx(self.model, tensors, NAMES)
        self.tokens = np.random.default_rng(1).integers(0, 97, (BATCH, LENGTH), np.int32)


@cache
def pair_of(alibi: bool) -> Pair:
    return Pair(alibi)


@pytest.mark.parametrize("alibi", [True, False])
def test_logits_loss_and_gradients(alibi):
    pair = pair_of(alibi)
    tokens = torch.from_numpy(pair.tokens).long()
    out = pair.torch(tokens, labels=tokens)
    expected = out.logits.detach().numpy()
    call = jax.jit(partial(pair.model))
    logits = call(pair.params, Batch(pair.tokens)).x
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGITS)
    streamed, _ = stream(call, pair.params, pair.tokens, pair.model.init_state(BATCH, LENGTH))
    np.testing.assert_allclose(streamed, expected, rtol=0, atol=LOGITS)

    pair.torch.zero_grad()
    out.loss.backward()
    gradients = split({name: p.grad for name, p in pair.torch.named_parameters()})
    loss, actual = loss_and_gradients(pair.model, pair.params, pair.tokens)
    assert loss == pytest.approx(out.loss.item(), abs=2e-6)
    assert_leaves_close(actual, to_lcx(pair.model, gradients, NAMES), within=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 20, 32, 40, 71, 112])
def test_slopes_of_bloom_mpt_and_falcon(heads):
    """Each of theirs is a bias of key s = 1 and of s = 0 whose difference is the slope."""
    models = transformers.models
    mask = torch.ones(1, 2)
    bloom = models.bloom.modeling_bloom.build_alibi_tensor(mask, heads, torch.float32)
    mpt = models.mpt.modeling_mpt.build_mpt_alibi_tensor(heads, 2)
    falcon = models.falcon.modeling_falcon.build_alibi_tensor(mask, heads, torch.float32)
    ours = np.array(ALiBi().slopes(heads))
    for bias, within in ((bloom, 1e-6), (mpt, 1e-6), (falcon, 2**-8)):  # Falcon's are bf16
        bias = bias.reshape(heads, 2).numpy()
        np.testing.assert_allclose(bias[:, 1] - bias[:, 0], ours, rtol=within)
    steep = models.mpt.modeling_mpt.build_mpt_alibi_tensor(heads, 2, alibi_bias_max=16)
    steep = steep.reshape(heads, 2).numpy()
    np.testing.assert_allclose(steep[:, 1] - steep[:, 0], ALiBi(16.0).slopes(heads), rtol=1e-6)
