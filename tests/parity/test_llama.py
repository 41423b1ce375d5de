"""Softmax attention with RoPE, RMSNorm and SwiGLU against transformers' Llama, in fp32."""

from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest

from lcx.layers import RMSNorm, SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM, Block
from lcx.positions import NTK, Linear, Llama3, RoPE, YaRN
from lcx.positions.scaling import base_inv_freq
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
    "yarn": lm(2, RoPE(scaling=YaRN(4.0, original=32, beta_fast=4.0)), tied=True),
    "llama 3": lm(2, RoPE(scaling=Llama3(8.0, original=32)), tied=True),
}


def rope_of(position: RoPE) -> dict:
    """What `rope_parameters` says of a scheme."""
    match position.scaling:
        case None:
            more = {"rope_type": "default"}
        case Linear(factor):
            more = {"rope_type": "linear", "factor": factor}
        case YaRN(factor, original, fast, slow, magnitude, truncate):
            more = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": fast,
                "beta_slow": slow,
                "attention_factor": magnitude,
                "truncate": truncate,
            }
        case Llama3(factor, original, low, high):
            more = {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": original,
                "low_freq_factor": low,
                "high_freq_factor": high,
            }
    return {"rope_theta": position.theta} | {n: v for n, v in more.items() if v is not None}


def config_of(model: LM):
    """The same architecture in transformers' words."""
    attention, channel = model.pattern[0].mixer, model.pattern[0].channel
    return transformers.LlamaConfig(
        vocab_size=model.vocab,
        hidden_size=model.width,
        intermediate_size=channel.hidden,
        num_hidden_layers=model.dims.layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.groups,
        rms_norm_eps=model.norm.eps,
        rope_parameters=rope_of(attention.position),
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


FACTORS, LENGTHS = (1.0, 1.5, 4.0, 32.0), (128, 2048, 8192)
SCALINGS = (
    None,
    *(Linear(f) for f in FACTORS),
    *(YaRN(f, L) for f in FACTORS for L in LENGTHS),
    YaRN(4.0, 2048, beta_fast=8.0, beta_slow=0.5),
    YaRN(4.0, 2048, truncate=False),
    YaRN(4.0, 2048, attention_factor=1.3),
    *(Llama3(f, L) for f in FACTORS for L in LENGTHS),
    Llama3(8.0, 2048, low=2.0, high=9.0),
)


@pytest.mark.parametrize("width", [8, 64, 128, 256])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
def test_frequencies_and_magnitudes(theta, width):
    model = lm(4, RoPE(), tied=True)
    for scaling in SCALINGS:
        position = RoPE(theta=theta, scaling=scaling)
        config = config_of(altered(model, mixer=replace(model.pattern[0].mixer, position=position)))
        config.head_dim = width
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        actual = scaling.inv_freq(theta, width) if scaling else base_inv_freq(theta, width)
        assert abs(rotary.attention_scaling - (scaling.magnitude() if scaling else 1)) < 1e-12
        theirs = rotary.inv_freq.numpy()
        # fp32 on their side; measured: 1e-7, and where YaRN and Llama3 mix two numbers, 6e-7
        np.testing.assert_allclose(actual, theirs, rtol=1e-6, err_msg=str(scaling))


@pytest.mark.parametrize("width", [8, 64, 128])
@pytest.mark.parametrize(("factor", "times"), [(1.0, 1), (1.0, 4), (2.0, 2), (4.0, 8)])
def test_ntk_is_the_dynamic_kind_at_one_length(width, factor, times):
    """Dynamic NTK at n tokens of an original L has the base of the factor f n / L - (f - 1)."""
    config = config_of(lm(4, RoPE(), tied=True))
    config.head_dim, config.max_position_embeddings = width, 512
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": factor}
    dynamic = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["dynamic"]
    theirs, magnitude = dynamic(config, "cpu", seq_len=512 * times)
    assert magnitude == 1
    actual = NTK(factor * times - (factor - 1)).inv_freq(1e4, width)
    np.testing.assert_allclose(actual, theirs.numpy(), rtol=1e-6)
