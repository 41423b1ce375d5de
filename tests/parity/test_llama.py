"""Softmax attention with RoPE, RMSNorm and SwiGLU against transformers' Llama, in fp32."""

from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest

from lcx.layers import RMSNorm, SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM, Block
from lcx.positions import Linear, RoPE
from lcx.positions.rope import base_inv_freq
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

BATCH, LENGTH = 2, 96
LOGITS = 1e-5  # measured: 5.5e-6 whole, 6.3e-6 in pieces, of logits of standard deviation 1

NAMES = {
    "embed.embedding": "model.embed_tokens.weight",
    "mixer_norm.scale": "model.layers.{}.input_layernorm.weight",
    "mixer.q.kernel": "model.layers.{}.self_attn.q_proj.weight",
    "mixer.k.kernel": "model.layers.{}.self_attn.k_proj.weight",
    "mixer.v.kernel": "model.layers.{}.self_attn.v_proj.weight",
    "mixer.out.kernel": "model.layers.{}.self_attn.o_proj.weight",
    "channel_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "channel.gate.kernel": "model.layers.{}.mlp.gate_proj.weight",
    "channel.up.kernel": "model.layers.{}.mlp.up_proj.weight",
    "channel.down.kernel": "model.layers.{}.mlp.down_proj.weight",
    "norm.scale": "model.norm.weight",
    "head.kernel": "lm_head.weight",
}


def lm(kv_heads: int, position: RoPE, *, tied: bool, places: int = 1, repeats: int = 2) -> LM:
    norm = RMSNorm(eps=1e-3)  # large enough that the logits show it
    attention = SoftmaxAttention(heads=4, kv_heads=kv_heads, position=position)
    block = Block(attention, SwiGLU(hidden=112), norm)
    return LM(97, 64, pattern=(block,) * places, repeats=repeats, tied=tied, norm=norm)


MODELS = {
    "multi-head": lm(4, RoPE(), tied=True, repeats=3),
    "grouped": lm(2, RoPE(theta=5e5), tied=False, places=2),
    "multi-query, interpolated": lm(1, RoPE(scaling=Linear(4.0)), tied=True),
}


def config_of(model: LM):
    """The same architecture in transformers' words."""
    attention, channel = model.pattern[0].mixer, model.pattern[0].channel
    rope = {"rope_type": "default", "rope_theta": attention.position.theta}
    if attention.position.scaling is not None:
        rope |= {"rope_type": "linear", "factor": attention.position.scaling.factor}
    return transformers.LlamaConfig(
        vocab_size=model.vocab,
        hidden_size=model.width,
        intermediate_size=channel.hidden,
        num_hidden_layers=model.dims.layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.groups,
        rms_norm_eps=model.norm.eps,
        rope_parameters=rope,
        tie_word_embeddings=model.tied,
        max_position_embeddings=LENGTH,
        bos_token_id=None,
        eos_token_id=None,  # so that no greedy continuation ends early
        attn_implementation="eager",
    )


class Pair:
    """One model twice, with the same weights, and what torch makes of a text."""

    def __init__(self, model: LM):
        self.model, self.call = model, jax.jit(partial(model))
        self.torch = transformers.LlamaForCausalLM(config_of(model)).eval()
        randomise(self.torch)
        self.params = to_lcx(model, dict(self.torch.named_parameters()), NAMES)
        self.tokens = np.random.default_rng(1).integers(0, model.vocab, (BATCH, LENGTH), np.int32)
        with torch.no_grad():
            self.logits = self.torch(torch.from_numpy(self.tokens).long()).logits.numpy()


@cache
def pair_of(name: str) -> Pair:
    return Pair(MODELS[name])


@pytest.fixture(params=MODELS)
def pair(request) -> Pair:
    return pair_of(request.param)


def test_logits(pair):
    logits, state = pair.call(pair.params, pair.tokens)
    assert state is None
    np.testing.assert_allclose(logits, pair.logits, rtol=0, atol=LOGITS)


def test_loss_and_gradients(pair):
    tokens = torch.from_numpy(pair.tokens).long()
    expected = pair.torch(tokens, labels=tokens).loss  # it shifts the labels itself
    pair.torch.zero_grad()
    expected.backward()
    gradients = {name: p.grad for name, p in pair.torch.named_parameters()}

    loss, actual = loss_and_gradients(pair.model, pair.params, pair.tokens)
    assert loss == pytest.approx(expected.item(), abs=2e-6)  # measured: 5e-7, one ulp
    # measured: 2.7e-6
    assert_leaves_close(actual, to_lcx(pair.model, gradients, NAMES), within=1e-5)


def test_streaming_in_pieces(pair):
    state = pair.model.init_state(BATCH, LENGTH)
    logits, state = stream(pair.call, pair.params, pair.tokens, state)
    np.testing.assert_allclose(logits, pair.logits, rtol=0, atol=LOGITS)
    np.testing.assert_array_equal(state["position"], LENGTH)


def test_greedy_continuation(pair):
    prompt, new = 33, 8
    expected = pair.torch.generate(
        torch.from_numpy(pair.tokens[:, :prompt]).long(),
        attention_mask=torch.ones(BATCH, prompt, dtype=torch.long),  # token 0 is no padding
        max_new_tokens=new,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    state = pair.model.init_state(BATCH, LENGTH)
    text = [pair.tokens[:, :prompt]]
    for _ in range(new):
        logits, state = pair.call(pair.params, text[-1], state=state)
        text.append(np.asarray(logits[:, -1:].argmax(axis=-1), np.int32))
    np.testing.assert_array_equal(np.concatenate(text, axis=1), expected.numpy())


def altered(model: LM, **fields) -> LM:
    return replace(model, pattern=tuple(replace(block, **fields) for block in model.pattern))


@pytest.mark.parametrize("change", ["theta", "factor", "eps"])
def test_a_small_slip_would_be_seen(change):
    """What the bound is worth: these move the logits by 0.01, 0.08 and 0.04."""
    pair = pair_of("multi-query, interpolated")
    mixer = pair.model.pattern[0].mixer
    model = {
        "theta": altered(pair.model, mixer=replace(mixer, position=RoPE(1.01e4, Linear(4.0)))),
        "factor": altered(pair.model, mixer=replace(mixer, position=RoPE(1e4, Linear(4.01)))),
        "eps": altered(pair.model, norm=RMSNorm(eps=0.9e-3)),
    }[change]
    params = to_lcx(model, dict(pair.torch.named_parameters()), NAMES)
    logits, _ = jax.jit(partial(model))(params, pair.tokens)
    assert np.abs(logits - pair.logits).max() > 100 * LOGITS


@pytest.mark.parametrize("scaling", [None, Linear(4.0), Linear(1.5)])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_frequencies(theta, scaling):
    config = config_of(lm(4, RoPE(theta=theta, scaling=scaling), tied=True))
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    width = config.head_dim
    actual = scaling.inv_freq(theta, width) if scaling else base_inv_freq(theta, width)
    assert rotary.attention_scaling == 1
    np.testing.assert_allclose(actual, rotary.inv_freq.numpy(), rtol=2e-7)  # fp32: 1e-7
