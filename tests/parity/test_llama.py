"""Softmax attention with RoPE, RMSNorm and SwiGLU against transformers' Llama, in fp32."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.block import Block
from lcx.decoding import BeamSearch
from lcx.generate import Generator
from lcx.huggingface.llama import Llama
from lcx.huggingface.positions import write_positions
from lcx.layers import RMSNorm, SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.positions import (
    NTK,
    DynamicNTK,
    DynamicYaRN,
    Llama3,
    LongRoPE,
    PositionInterpolation,
    RoPE,
    YaRN,
)
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

RULES = (*Llama().around(LM()), *Llama().within(LM(), Block()))
NAMES = {rule.leaves[0]: rule.tensor for rule in RULES} | {"head.kernel": Llama.heads[0]}

BATCH, LENGTH = 2, 96
# Four times what was measured, for other processors: 7e-6, of logits of standard deviation 1
LOGITS = 2.8e-5
SHARPER = 7e-5  # 1.7e-5
"""For LongRoPE: its magnitude sharpens scores by 1.3, and frequencies that depend on the length are
fp32, rounded twice (1.2e-7). Measured: 1.8e-5; against torch in float64 1.5e-5, of which torch's
own fp32 has 4.9e-6."""


def lm(kv_heads: int, position: RoPE, *, tied: bool, places: int = 1, repeats: int = 2) -> LM:
    norm = RMSNorm(eps=1e-3)  # large enough that the logits show it
    attention = SoftmaxAttention(heads=4, kv_heads=kv_heads, position=position)
    block = Block(attention, SwiGLU(hidden=112), norm)
    return LM(97, 64, pattern=(block,) * places, repeats=repeats, tied=tied, norm=norm)


LONG = (1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.0, 3.0)
MODELS = {
    "multi-head": lm(4, RoPE(), tied=True, repeats=3),
    "grouped": lm(2, RoPE(theta=5e5), tied=False, places=2),
    "multi-query, interpolated": lm(1, RoPE(scaling=PositionInterpolation(4.0)), tied=True),
    "yarn": lm(2, RoPE(scaling=YaRN(4.0, original=32, beta_fast=4.0)), tied=True),
    "dynamic ntk": lm(2, RoPE(scaling=DynamicNTK(original=32, factor=2.0)), tied=True),
    "long rope": lm(
        2, RoPE(scaling=LongRoPE((1.0,) * 8, LONG, original=32, factor=3.0)), tied=True
    ),
    "llama 3": lm(2, RoPE(scaling=Llama3(8.0, original=32)), tied=True),
}


def config_of(model: LM):
    """The same architecture in transformers' words."""
    attention, channel = model.pattern[0].mixer, model.pattern[0].channel
    said = {
        "model_type": "llama",
        "hidden_size": model.width,
        "num_attention_heads": attention.heads,
        "max_position_embeddings": LENGTH,
    }
    return transformers.LlamaConfig(
        **write_positions(attention.position, said),
        vocab_size=model.vocabulary,
        intermediate_size=channel.hidden,
        num_hidden_layers=model.dims.layers,
        num_key_value_heads=attention.groups,
        rms_norm_eps=model.norm.eps,
        tie_word_embeddings=model.tied,
        bos_token_id=None,
        eos_token_id=None,  # so that no greedy continuation ends early
        attn_implementation="eager",
    )


class Pair:
    """One model twice, with the same weights, and what torch makes of a text."""

    def __init__(self, name: str):
        model = MODELS[name]
        self.model, self.call = model, jax.jit(partial(model))
        self.torch = transformers.LlamaForCausalLM(config_of(model)).eval()
        randomise(self.torch)
        self.params = to_lcx(model, dict(self.torch.named_parameters()), NAMES)
        self.tokens = np.random.default_rng(1).integers(
            0, model.vocabulary, (BATCH, LENGTH), np.int32
        )
        self.within = SHARPER if name == "long rope" else LOGITS
        with torch.no_grad():
            self.logits = self.torch(torch.from_numpy(self.tokens).long()).logits.numpy()


@cache
def pair_of(name: str) -> Pair:
    return Pair(name)


@pytest.fixture(params=MODELS)
def pair(request) -> Pair:
    return pair_of(request.param)


def test_logits(pair):
    logits, state, _ = pair.call(pair.params, Batch(pair.tokens))
    assert state is None
    np.testing.assert_allclose(logits, pair.logits, rtol=0, atol=pair.within)


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
    np.testing.assert_allclose(logits, pair.logits, rtol=0, atol=pair.within)
    np.testing.assert_array_equal(state.position, LENGTH)


def test_greedy_continuation(pair):
    if isinstance(pair.model.pattern[0].mixer.position.scaling, DynamicNTK | LongRoPE):
        pytest.skip("their frequencies change while a text grows, and what is cached does not")
    prompts, new = [row[:n] for row, n in zip(pair.tokens, (33, 20), strict=True)], 24
    written = Generator(pair.model, pair.params).write(prompts, new)
    for prompt, found in zip(prompts, written, strict=True):
        expected = pair.torch.generate(
            torch.from_numpy(prompt[None]).long(),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),  # token 0 is no padding
            max_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        np.testing.assert_array_equal(found.tokens, expected.numpy()[0, len(prompt) :])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("stop", [(), (5,), (5, 40, 71)], ids=["endless", "one end", "three ends"])
def test_beams(penalty, stop):
    """Several results of ragged prompts; transformers is given each alone."""
    pair, beams, new = pair_of("grouped"), 4, 12
    prompts = [row[:n] for row, n in zip(pair.tokens, (33, 20), strict=True)]
    generator = Generator(pair.model, pair.params, BeamSearch(beams, penalty), stop=stop)
    for prompt, found in zip(prompts, generator.best(prompts, new, beams), strict=True):
        expected = pair.torch.generate(
            torch.from_numpy(prompt[None]).long(),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=penalty,
            early_stopping=False,
            eos_token_id=list(stop) or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for text, ids in zip(found, expected.sequences[:, len(prompt) :].numpy(), strict=True):
            length = len(text.tokens)
            np.testing.assert_array_equal(text.tokens, ids[:length])
            assert not text.stopped or ids[length] in stop
        scores = expected.sequences_scores.numpy()
        np.testing.assert_allclose([text.score for text in found], scores, rtol=2e-5)


def altered(model: LM, **fields) -> LM:
    return replace(model, pattern=tuple(replace(block, **fields) for block in model.pattern))


@pytest.mark.parametrize("change", ["theta", "factor", "eps"])
def test_a_small_slip_would_be_seen(change):
    """What the bound is worth: these move the logits by 0.01, 0.08 and 0.04."""
    pair = pair_of("multi-query, interpolated")
    mixer = pair.model.pattern[0].mixer
    model = {
        "theta": altered(
            pair.model, mixer=replace(mixer, position=RoPE(1.01e4, PositionInterpolation(4.0)))
        ),
        "factor": altered(
            pair.model, mixer=replace(mixer, position=RoPE(1e4, PositionInterpolation(4.01)))
        ),
        "eps": altered(pair.model, norm=RMSNorm(eps=0.9e-3)),
    }[change]
    params = to_lcx(model, dict(pair.torch.named_parameters()), NAMES)
    logits = jax.jit(partial(model))(params, Batch(pair.tokens)).x
    assert np.abs(logits - pair.logits).max() > 100 * LOGITS


FACTORS, LENGTHS = (1.0, 1.5, 4.0, 32.0), (128, 2048, 8192)
SCALINGS = (
    None,
    *(PositionInterpolation(f) for f in FACTORS),
    *(YaRN(f, L) for f in FACTORS for L in LENGTHS),
    YaRN(4.0, 2048, beta_fast=8.0, beta_slow=0.5),
    YaRN(4.0, 2048, truncate=False),
    YaRN(4.0, 2048, attention_factor=1.3),
    *(Llama3(f, L) for f in FACTORS for L in LENGTHS),
    Llama3(8.0, 2048, low=2.0, high=9.0),
)


def long_rope(width: int, factor: float, original: int, **more) -> LongRoPE:
    pair = np.linspace(0, 1, width // 2)
    return LongRoPE(tuple(1 + 0.1 * pair), tuple(factor**pair), original, factor, **more)


def theirs(position: RoPE, width: int, length: int) -> tuple[np.ndarray, float]:
    """Frequencies and magnitude that transformers gives a text of this length."""
    said = {"model_type": "llama", "head_dim": width, "max_position_embeddings": LENGTH}
    config = transformers.LlamaConfig(
        **write_positions(position, said), hidden_size=4 * width, num_attention_heads=4
    )
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    rotary(torch.zeros(1), torch.tensor([[length - 1]]))
    return rotary.inv_freq.numpy(), rotary.attention_scaling


def assert_as_theirs(position: RoPE, width: int, length: int) -> None:
    inv_freq, magnitude = theirs(position, width, length)
    # as an int, in float64; as an array, in fp32
    for ours in (length, jnp.full((1, 1), length)):
        got, scaled = position.frequencies(int(position.fraction * width), ours)
        np.testing.assert_allclose(np.ravel(scaled), magnitude, rtol=1e-6)
        # fp32 on their side; measured: 1e-7, and where YaRN and Llama3 mix two numbers, 6e-7
        np.testing.assert_allclose(np.ravel(got), inv_freq, rtol=2.5e-6, err_msg=str(position))


@pytest.mark.parametrize("width", [8, 64, 128, 256])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
def test_frequencies_and_magnitudes(theta, width):
    for scaling in SCALINGS:
        assert_as_theirs(RoPE(theta, scaling), width, length=1)
    for factor in FACTORS:
        for original in LENGTHS:
            for length in (1, original, original + 1, 3 * original, 33 * original + 7):
                assert_as_theirs(RoPE(theta, DynamicNTK(original, factor)), width, length)
                assert_as_theirs(RoPE(theta, long_rope(width, factor, original)), width, length)
    assert_as_theirs(RoPE(theta, long_rope(width, 4.0, 128, attention_factor=1.3)), width, 200)


def test_a_part_that_turns():
    assert_as_theirs(RoPE(fraction=0.5, scaling=YaRN(4.0, 2048)), 64, 1)


@pytest.mark.parametrize("width", [8, 128])
@pytest.mark.parametrize("length", [1, 2048, 2049, 8192, 70_000])
def test_dynamic_schemes_are_fixed_ones_at_each_length(width, length):
    """Dynamic YaRN, which transformers does not have, is their YaRN by length / original."""
    stretch = max(length / 2048, 1.0)
    pairs = (
        (DynamicYaRN(2048, beta_fast=16.0), YaRN(stretch, 2048, beta_fast=16.0)),
        (DynamicNTK(2048, factor=2.0), NTK(2 * stretch - 1)),
    )
    for dynamic, fixed in pairs:
        expected = RoPE(scaling=fixed).frequencies(width, length)
        for given, within in ((length, 1e-14), (jnp.full((1, 1), length), 1e-6)):  # 1.8e-7
            got = RoPE(scaling=dynamic).frequencies(width, given)
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=within)
