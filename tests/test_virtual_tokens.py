"""What stands before every document: the networks that make it, who sees it, what is refused."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.adapters import InitialState, LoRA, PrefixTuning, PromptTuning, PTuning
from lcx.adapters.split import begin, frozen, tuned
from lcx.block import Block
from lcx.cost import training_flops
from lcx.generate import Generator
from lcx.layers import MLP
from lcx.mixers import MIXERS, RGLRU, GatedConv, GatedDeltaNet, Mamba2, SoftmaxAttention
from lcx.model import LM, count_parameters
from lcx.positions import DynamicNTK, Learned, NoPE, RoPE
from lcx.sparsity import Strided, Window
from lcx.training.fingerprint import fingerprint
from lcx.types import Batch, Begins, Context
from lcx.validation import validate
from tests.marks import rest
from tests.tiny import tiny

WIDTH = 16
TOKENS = jax.random.randint(jax.random.key(5), (2, 30), 0, 40)


def model_of(*mixers, **changed) -> LM:
    pattern = tuple(Block(mixer, MLP(32)) for mixer in mixers)
    return LM(vocab=40, width=WIDTH, pattern=pattern, repeats=2, **changed)


def started(tune, model):
    """The base's parameters, and what is trained beside them."""
    start = jax.jit(model.init)(jax.random.key(0))
    return start, jax.jit(partial(begin, tune, model))(start, jax.random.key(1))


def read(tune, model, start, trained, tokens=TOKENS):
    whole = tuned(tune, model, trained, frozen(tune, model, start))
    return jax.jit(model)(whole, Batch(tokens)).x


def float64(added):
    return {path: np.asarray(leaf[...], np.float64) for path, leaf in added.items()}


def test_p_tuning_is_its_network():
    tune = PTuning(3, hidden=5)
    _, added = started(tune, model_of(RGLRU(heads=2)))
    assert {leaf[...].dtype for leaf in added.values()} == {jnp.dtype("float32")}
    own = float64(added)
    x = own["prompt.embedding"]
    for i in range(3):
        x = x @ own[f"prompt.{i}.kernel"] + own[f"prompt.{i}.bias"]
        x = np.maximum(x, 0) if i < 2 else x
    np.testing.assert_allclose(tune.embeddings(added), x, rtol=0, atol=1e-6)


def test_a_prefix_by_its_network():
    tune, model = PrefixTuning(3, hidden=5), model_of(SoftmaxAttention(heads=4, kv_heads=2))
    _, added = started(tune, model)
    own = float64(added)
    inside = np.tanh(own["prefix.embedding"] @ own["prefix.kernel"] + own["prefix.bias"])
    there = tune.keys(model, added)[0]
    for name, got in (("k", there.k), ("v", there.v)):
        under = f"blocks.0.mixer_initial.{name}"
        for layer in range(2):
            rows = inside @ own[f"{under}_kernel"][layer] + own[f"{under}_bias"][layer]
            expected = rows.reshape(3, 2, 4)
            np.testing.assert_allclose(got[layer, 0], expected, rtol=0, atol=1e-6)


def test_a_prefix_is_more_keys_of_the_softmax():
    """The equation of Li and Liang, in float64: keys as they are, queries turned from M on."""
    tune, mixer = PrefixTuning(3), SoftmaxAttention(heads=1)
    model = model_of(mixer)
    start, added = started(tune, model)
    there = jax.tree.map(lambda a: a[0], tune.keys(model, added)[0])
    params = jax.tree.map(lambda a: a[0], start.blocks[0].mixer)
    x = jax.random.normal(jax.random.key(2), (1, 9, WIDTH))
    ctx = Context.of(3 + jnp.arange(9, dtype=jnp.int32)[None])
    got = mixer(params, x, ctx._replace(initial=there)).x
    q, k, v = (np.asarray(params[n](x), np.float64)[0] for n in "qkv")

    def turned(a):
        angle = (3 + np.arange(9))[:, None] * 10_000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
        c, s, (a, b) = np.cos(angle), np.sin(angle), np.split(a, 2, axis=1)
        return np.concatenate([a * c - b * s, a * s + b * c], axis=1)

    keys = np.concatenate([np.asarray(there.k)[0, :, 0], turned(k)])
    values = np.concatenate([np.asarray(there.v)[0, :, 0], v])
    scores = turned(q) @ keys.T / WIDTH**0.5
    scores = np.where(np.arange(12) <= 3 + np.arange(9)[:, None], scores, -np.inf)
    weights = np.exp(scores)
    o = (weights / weights.sum(axis=1, keepdims=True)) @ values
    expected = o @ np.asarray(params.out.kernel[...], np.float64)
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sparsity", [Window(4), Window(4, sinks=2), Strided(4)])
@pytest.mark.parametrize("tune", [PrefixTuning(3), PromptTuning(3)])
def test_every_token_sees_virtual_tokens_under_any_sparsity(sparsity, tune):
    model = model_of(SoftmaxAttention(heads=2, sparsity=sparsity))
    start, added = started(tune, model)
    before = read(tune, model, start, added)
    other = read(tune, model, start, jax.tree.map(lambda a: a + 0.3, added))
    assert (np.abs(np.asarray(before - other)).max(axis=-1) > 1e-4).all()


def test_in_a_hybrid_each_method_is_of_the_mixers_that_take_it():
    model = model_of(Mamba2(head_width=8, state=4), SoftmaxAttention(heads=2))
    paths = [set(started(tune, model)[1]) for tune in (InitialState(), PrefixTuning(3))]
    assert paths[0] == {"blocks.0.mixer_initial.S"}
    assert paths[1] == {"blocks.1.mixer_initial.k", "blocks.1.mixer_initial.v"}
    before, other = (
        read(tune, model, *started(tune, model)) for tune in (PromptTuning(3), PromptTuning(4))
    )
    assert (np.abs(np.asarray(before - other)) > 1e-5).any()


BEGINNING = [mixer for mixer in MIXERS.values() if isinstance(mixer(), Begins)]


@pytest.mark.parametrize("mixer", [*map(rest, BEGINNING), SoftmaxAttention])
def test_every_part_of_what_is_learned_moves_every_mixer(mixer):
    sizes = {"heads": 2, "head_width": 8, "state": 4}
    own = mixer(**{k: n for k, n in sizes.items() if k in mixer.__dataclass_fields__})
    model = model_of(own)
    state = isinstance(own, Begins) and own.learned_state is not None
    alone = InitialState() if state else PrefixTuning(3)
    for tune in (PromptTuning(3), alone) if mixer is not GatedConv else (PromptTuning(3),):
        start, added = started(tune, model)
        start = jax.tree.map(
            lambda a: a + 0.1 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), start
        )

        def loss(added, tune=tune, start=start):
            return jnp.sin(read(tune, model, start, added)).sum()

        for path, gradient in jax.grad(loss)(added).items():
            assert (np.abs(np.asarray(gradient[...])).max(axis=(0, -1)) > 0).all(), path


HYBRID = model_of(GatedDeltaNet(heads=2), SoftmaxAttention(heads=2))


def test_ragged_prompts_are_read_and_gone_on_from_as_each_alone():
    """Left-padded: what is padded begins from the virtual tokens, too, and no text sees it."""
    for tune in (PromptTuning(3), InitialState()):
        start, added = started(tune, HYBRID)
        whole = tuned(tune, HYBRID, added, frozen(tune, HYBRID, start))
        prompts = [np.asarray(TOKENS[0, :9]), np.asarray(TOKENS[1, :4])]
        written = Generator(HYBRID, whole).write(prompts, 5)
        call = jax.jit(HYBRID)
        for prompt, got in zip(prompts, written, strict=True):
            text = np.concatenate([prompt, got.tokens])
            logits = call(whole, Batch(jnp.asarray(text)[None])).x[0, len(prompt) - 1 : -1]
            np.testing.assert_array_equal(logits.argmax(axis=-1), got.tokens)


def test_texts_that_outgrow_vectors_of_positions_are_refused():
    model = model_of(SoftmaxAttention(heads=2, position=NoPE()), positions=Learned(16))
    tune = PromptTuning(4)
    start, added = started(tune, model)
    generator = Generator(model, tuned(tune, model, added, frozen(tune, model, start)))
    assert len(generator.write([np.arange(6)], 6)[0].tokens) == 6
    with pytest.raises(ValueError, match=r"4 virtual tokens, a prompt of 7 .* and 6 new .* are 17"):
        generator.write([np.arange(7)], 6)


def test_a_fingerprint_is_of_what_was_learned():
    """Not of what is computed from it, which other compilations round otherwise."""
    tune = PromptTuning(3)
    start, added = started(tune, HYBRID)
    whole = tuned(tune, HYBRID, added, frozen(tune, HYBRID, start))
    other = jax.jit(lambda a: tuned(tune, HYBRID, a, frozen(tune, HYBRID, start)))(added)
    assert fingerprint(whole) == fingerprint(other)
    moved = jax.tree.map(lambda a: a + 1e-3, added)
    assert fingerprint(whole) != fingerprint(
        tuned(tune, HYBRID, moved, frozen(tune, HYBRID, start))
    )


def test_virtual_tokens_cost_their_keys_alone():
    """A score and a sum of each, forward and backward; their networks run once a step."""
    model = model_of(SoftmaxAttention(heads=2))
    without = training_flops(model, 64) - 2 * count_parameters(model)  # all are frozen
    layers, one = 2, 4 * WIDTH  # FLOPs of a key, of all heads
    for tune in (PromptTuning(20), PTuning(20), PrefixTuning(20), PrefixTuning(20, hidden=512)):
        assert training_flops(model, 64, tune) == without + 3 * layers * 20 * one


class Forgetful(MLP):
    """A state, of which nothing says that documents can begin from it."""

    def init_state(self, dims, batch, capacity):
        return (jnp.zeros((batch, 1)),)


@pytest.mark.parametrize(
    ("tune", "model", "message"),
    [
        (InitialState(), model_of(SoftmaxAttention()), "SoftmaxAttention has no sum of the past"),
        (InitialState(), model_of(GatedConv()), "GatedConv has no sum of the past"),
        (PrefixTuning(3), model_of(Mamba2()), "Mamba2 has no keys .* there is InitialState"),
        (
            PromptTuning(3),
            model_of(SoftmaxAttention(position=RoPE(scaling=DynamicNTK(64)))),
            r"DynamicNTK\(original=64.* depend on the length",
        ),
        (PTuning(3), LM(pattern=(Block(Forgetful()),)), "Forgetful cannot begin a document"),
    ],
)
def test_what_a_mixer_cannot_take_is_refused(tune, model, message):
    with pytest.raises(ValueError, match=f"{type(tune).__name__}: .*{message}"):
        tune.trained(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptTuning(0), "PromptTuning: tokens must be at least 1, not 0"),
        (lambda: PTuning(3, hidden=0), "PTuning: hidden must be at least 1, not 0"),
        (lambda: PrefixTuning(-1), "PrefixTuning: tokens must be at least 1, not -1"),
    ],
)
def test_sizes_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_virtual_tokens_take_room_among_vectors_of_positions(texts):
    experiment = tiny(f"{texts}/*.txt")
    longest = max(experiment.train.length, experiment.evaluation.longest)
    model = replace(experiment.model, pattern=(Block(SoftmaxAttention(position=NoPE())),))
    base = replace(experiment, model=replace(model, positions=Learned(longest + 3)))
    corpus = base.data.load()
    few = replace(base, init_from="base", tune=PrefixTuning(3))
    validate("few", few, {"base": base}, corpus)
    few = replace(few, tune=PrefixTuning(4))
    with pytest.raises(ValueError, match=f"for texts of {longest + 3} tokens, .*of {longest + 4}"):
        validate("few", few, {"base": base}, corpus)
    few = replace(few, tune=PromptTuning(3))
    with pytest.raises(ValueError, match="PromptTuning: the documents of a plain model begin from"):
        validate("more", replace(few, tune=LoRA(), init_from="few"), {"few": few}, corpus)


def test_a_learned_state_is_fp32_under_bf16():
    model = model_of(Mamba2(head_width=8, state=4))
    model = replace(model, policy=replace(model.policy, params="bfloat16", compute="bfloat16"))
    start, added = started(InitialState(), model)
    assert added["blocks.0.mixer_initial.S"][...].dtype == jnp.float32
    assert np.isfinite(np.asarray(read(InitialState(), model, start, added))).all()
