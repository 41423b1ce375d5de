"""Fine-tuning with few parameters: what every method keeps to, under every kind of mixer."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from lcx.adapters import (
    Adapter,
    BiasTuning,
    HasVirtualTokens,
    HeadTuning,
    InitialState,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from lcx.adapters.beginning import drawn_embeddings
from lcx.adapters.bottleneck import PARTS
from lcx.adapters.lora import _one_product, merged_kernel
from lcx.adapters.split import begin, by_path, check_merges, frozen, merged, tuned
from lcx.block import Block
from lcx.experiment import Experiment, Train
from lcx.layers import (
    MLP,
    LayerNorm,
    RWKV6ChannelMix,
    RWKV7ChannelMix,
    RWKVChannelMix,
    SwiGLU,
)
from lcx.mixers import (
    RGLRU,
    RWKV4,
    RWKV6,
    RWKV7,
    GatedDeltaNet,
    LinearAttention,
    Mamba2,
    SoftmaxAttention,
)
from lcx.model import LM, WRITTEN_OUT
from lcx.optim import AdamW
from lcx.parallel.mesh import BATCH, Mesh, make_mesh, shardings
from lcx.training.loop import fresh_state, held, jit_step, make_step, train
from lcx.training.origin import Origin
from lcx.training.restore import AnotherBaseError, restore_params, restore_plain
from lcx.training.runs import Run
from lcx.types import Batch
from lcx.validation import validate
from tests.tiny import tiny

NORM = LayerNorm()
BLOCKS = {
    "softmax": Block(
        SoftmaxAttention(heads=2, biases=("q", "k", "v", "out")), SwiGLU(32, bias=True), NORM
    ),
    "linear": Block(LinearAttention(heads=2), SwiGLU(32), NORM),
    "gated": Block(Mamba2(head_width=16, state=8), SwiGLU(32), NORM),
    "by feature": Block(RWKV6(heads=2), RWKV6ChannelMix(32), NORM),
    "delta": Block(GatedDeltaNet(heads=2), MLP(32), NORM),
    "rwkv7": Block(RWKV7(heads=2), RWKV7ChannelMix(32), NORM),
    "rglru": Block(RGLRU(heads=2), SwiGLU(32), NORM),
    "rwkv4": Block(RWKV4(), RWKVChannelMix(32), NORM),
}
"""Softmax attention, and a recurrence of each algebra."""
LONG = LoRA(2, of=("mixer", "channel"), norms=True, embeddings=True)
NETWORK = PrefixTuning(3, hidden=5)
METHODS = (
    *(HeadTuning(), BiasTuning(), LONG, Adapter(4)),
    *(PromptTuning(3), PTuning(3, hidden=5), PrefixTuning(3), NETWORK, InitialState()),
)
LEARNED_BEGINNING = HasVirtualTokens | InitialState
EVERY_DAY = (
    *(("softmax", tune) for tune in METHODS),
    *(("delta", LONG), ("rwkv7", LONG)),
    *(("delta", InitialState()), ("rwkv4", InitialState()), ("rwkv7", PromptTuning(3))),
)


def named(tune) -> str:
    return f"{type(tune).__name__}{'-network' if tune == NETWORK else ''}"


def takes(name: str, tune) -> bool:
    softmax = name == "softmax"
    return not isinstance(tune, InitialState if softmax else PrefixTuning)


CASES = [
    pytest.param(
        name,
        tune,
        id=f"{name}-{named(tune)}",
        marks=() if (name, tune) in EVERY_DAY else (pytest.mark.rest,),
    )
    for name in BLOCKS
    for tune in METHODS
    if takes(name, tune)
]
"""Each method under each mixer that takes it."""


def model_of(name: str) -> LM:
    return LM(vocab=40, width=16, pattern=(BLOCKS[name],), repeats=2, tied=False, embed_norm=NORM)


@cache
def base(model: LM):
    """Parameters away from their first values, under which some layers give nothing."""
    params = jax.jit(model.init)(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 256))
    return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), params)


@cache
def rows(count: int = 4) -> Batch:
    """Packed documents."""
    tokens = jax.random.randint(jax.random.key(2), (count, 24), 0, 40)
    segments = jnp.where(jnp.arange(24) < 10, 1, 2) * jnp.ones((count, 1), jnp.int32)
    positions = jnp.where(jnp.arange(24) < 10, jnp.arange(24), jnp.arange(24) - 10)
    positions = positions * jnp.ones((count, 1), jnp.int32)
    return Batch(tokens, positions, segments, targets=jnp.roll(tokens, -1, axis=1))


def asked(name: str, tune, **changed) -> Experiment:
    settings = Train(length=24, batch=4, steps=3, optimizer=AdamW(warmup=0, peak=1e-2))
    mesh = changed.pop("mesh", Mesh())
    of_model = {key: changed.pop(key) for key in ("remat", "repeats") if key in changed}
    model = replace(model_of(name), **of_model)
    return Experiment(model=model, train=replace(settings, **changed), mesh=mesh, tune=tune)


@cache
def stepped(experiment: Experiment, steps: int = 3):
    """What is trained after some steps, what is frozen, and the loss of the last step."""
    mesh = make_mesh(experiment.mesh)
    optimizer = experiment.train.optimizer.transform(steps)
    fresh = partial(fresh_state, experiment, optimizer)
    key = jax.random.key(0)
    where = shardings(jax.eval_shape(fresh, key), mesh)
    start = base(experiment.model)
    with jax.set_mesh(mesh):
        start = jax.device_put(start, shardings(start, mesh))
        rest = held(experiment, start)
        state = jax.jit(fresh, out_shardings=where)(key, start)
        batch = jax.device_put(rows(), jax.sharding.NamedSharding(mesh, BATCH))
        step = jit_step(experiment, optimizer, where, mesh)
        for _ in range(steps):
            state, metrics = step(state, batch, rest)
    return jax.tree.map(jnp.asarray, jax.device_get((state, rest, metrics["loss"])))


def tuned_call(tune, model):
    """(trained, base) -> logits of `rows`."""

    batch = rows()

    def call(trained, start):
        return model(tuned(tune, model, trained, frozen(tune, model, start)), batch).x

    return call


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_before_the_first_step_a_tuned_model_is_its_base(name, tune):
    model = model_of(name)
    start = base(model)
    trained = jax.jit(partial(begin, tune, model))(start, jax.random.key(3))
    whole = tuned(tune, model, trained, frozen(tune, model, start))
    call = jax.jit(model)
    if not isinstance(tune, LEARNED_BEGINNING):
        got, expected = (call(params, rows()).x for params in (whole, start))
        np.testing.assert_array_equal(got, expected)
        return
    got, batch, of_documents = jax.jit(tuned_call(tune, model))(trained, start), rows(), {}
    if isinstance(tune, InitialState):
        of_documents = {1: call(start, batch).x[:, :10], 2: call(start, batch).x[:, 10:]}
    elif named(tune) in ("PromptTuning", "PrefixTuning"):
        # as if the tokens drawn stood in front of each document
        table = start.embed.embedding[...]
        drawn = drawn_embeddings(start, 3, nnx.Rngs(jax.random.key(3)))
        first = jnp.abs(table[None] - drawn[:, None]).sum(-1).argmin(axis=1)
        for number, at in ((1, slice(0, 10)), (2, slice(10, 24))):
            tokens = jnp.concatenate([jnp.tile(first, (4, 1)), batch.tokens[:, at]], axis=1)
            of_documents[number] = call(start, Batch(tokens)).x[:, 3:]
    for number, expected in of_documents.items():
        there = got[:, np.asarray(batch.segments)[0] == number]
        # measured: up to 2.1e-6, where logits reach 3 and more
        np.testing.assert_allclose(there, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_all_that_is_trained_moves_and_all_else_stays(name, tune):
    experiment = asked(name, tune)
    state, rest, _ = stepped(experiment)
    before = begin(tune, experiment.model, base(experiment.model), jax.random.key(0))
    assert state.params.keys() == before.keys()
    for path, leaf in state.params.items():
        if path != "blocks.0.mixer.first":  # of the first layer, nothing reads it
            assert (np.asarray(leaf[...]) != np.asarray(before[path][...])).any(), path
    own = by_path(base(experiment.model))
    assert rest.keys() | state.params.keys() >= own.keys()
    for path, leaf in rest.items():
        np.testing.assert_array_equal(leaf[...], own[path][...])
    # moments are of what is trained alone
    moments = sum(np.size(leaf) for leaf in jax.tree.leaves(state.optimizer))
    numbers = sum(np.size(leaf) for leaf in jax.tree.leaves(state.params))
    assert moments <= 2 * numbers + 4


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_merged_and_in_pieces_it_is_what_it_is_whole(name, tune):
    experiment = asked(name, tune)
    state, rest, _ = stepped(experiment)
    model = experiment.model
    whole = tuned(tune, model, state.params, rest)
    batch = rows()
    call = jax.jit(model)
    expected = call(whole, batch).x
    size = float(jnp.abs(expected).max())  # measured: 1.4e-6, where logits reach 3 and more
    try:
        check_merges(tune, model)
    except ValueError:
        assert isinstance(tune, Adapter | LEARNED_BEGINNING)
    else:
        plain = call(merged(tune, model, state.params, rest), batch).x
        np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-5 * size)
    memory, found = model.init_state(4, 24), []
    for at in (slice(0, 7), slice(7, 24)):
        piece = Batch(batch.tokens[:, at], batch.positions[:, at], batch.segments[:, at])
        out = call(whole, piece, memory)
        found.append(out.x)
        memory = out.state
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol=0, atol=1e-5 * size)
    # and of one document, which nobody says that it is one, token by token at the end
    one, memory, found = call(whole, Batch(batch.tokens)).x, model.init_state(4, 24), []
    for at in (slice(0, 21), slice(21, 22), slice(22, 23), slice(23, 24)):
        out = call(whole, Batch(batch.tokens[:, at]), memory)
        found.append(out.x)
        memory = out.state
    np.testing.assert_allclose(jnp.concatenate(found, 1), one, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("tune", METHODS, ids=named)
@pytest.mark.parametrize(
    "change",
    [
        {"accumulate": 2},
        {"remat": "block", "repeats": WRITTEN_OUT + 1},
        {"mesh": Mesh(data=2, model=2)},
        pytest.param({"mesh": Mesh(fsdp=2, seq=2)}, marks=pytest.mark.rest),
    ],
    ids=str,
)
def test_however_a_step_is_cut_it_trains_the_same(change, tune):
    plain = {"repeats": change["repeats"]} if "repeats" in change else {}
    name = "softmax" if takes("softmax", tune) else "delta"
    expected, _, loss = stepped(asked(name, tune, **plain), 1)
    got, _, other = stepped(asked(name, tune, **change), 1)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    for path, leaf in expected.optimizer[1].mu.items():
        there = np.asarray(leaf[...])
        mine = np.asarray(got.optimizer[1].mu[path][...])
        np.testing.assert_allclose(mine, there, rtol=0, atol=1e-5 * np.abs(there).max())


@pytest.fixture(scope="module")
def tuning(texts, tmp_path_factory):
    """Experiments, the folder of their runs, and what trains them."""
    model = LM(width=16, pattern=(BLOCKS["softmax"],), repeats=2)
    plain = replace(tiny(f"{texts}/*.txt"), model=model)
    plain = replace(plain, train=replace(plain.train, steps=4, checkpoint_every=2))
    few = replace(plain, init_from="base", tune=BiasTuning())
    out = tmp_path_factory.mktemp("runs")
    corpus = plain.data.load()

    def make(name: str, experiment: Experiment, start=None, folder=out) -> Run:
        run = Run(folder / name)
        weights = None if start is None else Run(folder / "base").origin.weights
        run.claim(experiment, Origin(began_from=weights), {})
        train(experiment, run, corpus, start, Console(quiet=True))
        return run

    return plain, few, out, make


def same_bits(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all((np.asarray(x) == np.asarray(y)).all() for x, y in pairs)


def test_a_tuned_run_keeps_what_it_trained_and_finds_its_base(tuning):
    plain, few, out, make = tuning
    base_run = make("base", plain)
    start = restore_params(plain, base_run)
    run = make("few", few, start)
    found = by_path(restore_params(few, run))
    for path, leaf in by_path(start).items():
        assert same_bits(leaf, found[path]) != (path in few.tune.trained(few.model)), path
    sizes = [
        sum(f.stat().st_size for f in (r.checkpoints / "4").rglob("*") if f.is_file())
        for r in (base_run, run)
    ]
    assert sizes[1] < sizes[0]
    # a run whose last checkpoint is lost goes on from the one before, to the same bits
    shutil.copytree(run.folder, out / "part")
    shutil.rmtree(out / "part" / "checkpoints" / "4")
    train(few, Run(out / "part"), few.data.load(), start, Console(quiet=True))
    assert same_bits(restore_params(few, Run(out / "part")), restore_params(few, run))


def test_an_adapter_for_another_base_is_refused(tuning, tmp_path):
    plain, few, _, make = tuning
    base_run = make("base", plain, folder=tmp_path)
    run = make("few", few, restore_params(plain, base_run), tmp_path)
    base_run.finish("another")
    with pytest.raises(AnotherBaseError, match=r"now it is another, another"):
        restore_params(few, run)
    base_run.folder.rename(tmp_path / "moved")
    with pytest.raises(AnotherBaseError, match=r"whose run has to lie beside it"):
        restore_plain(few, run)


def test_nothing_begins_from_what_cannot_be_merged(tuning):
    _, few, _, _ = tuning
    parent = replace(few, tune=Adapter())
    with pytest.raises(ValueError, match=r"init_from='few': Adapter: no plain model"):
        validate("more", replace(few, init_from="few"), {"few": parent}, few.data.load())


def test_a_bottleneck_is_the_equation_of_the_paper():
    """y + W_up act(W_down y + b) + c, in float64."""
    tune, model = Adapter(3, "relu"), LM(vocab=40, width=8, pattern=(Block(),), repeats=1)
    keys = iter(jax.random.split(jax.random.key(0), 9))
    base = jax.jit(model.init)(jax.random.key(1))
    added = tune.init(model, base, nnx.Rngs(0))
    added = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), added)
    own = tune.place(model, base, added).blocks[0]["channel_adapter"]
    y = jax.random.normal(next(keys), (2, 5, 8))
    got = jax.tree.map(lambda a: a[0], own)(y)
    down, b, up, c = (
        np.asarray(added[f"blocks.0.channel_adapter.{part}"][...], np.float64)[0] for part in PARTS
    )
    wide = np.asarray(y, np.float64)
    expected = wide + np.maximum(wide @ down + b, 0) @ up + c
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init_from": None}, "trains some parameters of `init_from`"),
        ({"model": LM(width=16)}, "the model has no bias"),
        ({"tune": LoRA(17)}, r"rank 17 is above that of blocks.0.mixer.k, 16 x 16"),
        ({"tune": LoRA(of=("q", "outt"))}, r"no projection is named 'outt'; did you mean 'out'\?"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tuning, changed, message):
    _, few, _, _ = tuning
    asked = replace(few, **changed)
    with pytest.raises(ValueError, match=message):
        validate("few", asked, {"base": replace(asked, tune=None)}, few.data.load())


def test_low_rank_updates_are_scaled_as_published():
    assert LoRA(8, alpha=16.0).scale == LoRA(8).scale == 2
    assert LoRA(16, alpha=16.0, rank_stabilised=True).scale == 4
    with pytest.raises(ValueError, match="rank must be at least 1"):
        LoRA(0)


def test_first_values_are_those_of_peft():
    model = LM(vocab=40, width=64, pattern=(Block(SoftmaxAttention()),), repeats=3)
    base = jax.eval_shape(model.init, jax.random.key(0))
    added = LoRA(32, of=("q",)).init(model, base, nnx.Rngs(0))
    a, b = (np.asarray(added[f"blocks.0.mixer.q.lora_{x}"][...]) for x in "ab")
    assert a.shape == (3, 64, 32)
    assert b.shape == (3, 32, 64)
    assert not b.any()
    assert 0.97 / 8 < np.abs(a).max() <= 1 / 8
    assert a.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)


def test_frozen_weights_have_no_products_for_their_gradients():
    """Of a weight, one product forward and one back to its input; of all that is trained, three."""
    block = Block(SoftmaxAttention(heads=2), SwiGLU(56))
    model = LM(vocab=40, width=16, pattern=(block,), repeats=2, tied=False)
    batch = rows(3)

    def products(tune) -> list[str]:
        experiment = Experiment(model=model, tune=tune)
        optimizer = experiment.train.optimizer.transform(3)
        start = jax.eval_shape(model.init, jax.random.key(0))
        state = jax.eval_shape(partial(fresh_state, experiment, optimizer), jax.random.key(0))
        step = jax.jit(make_step(experiment, optimizer))
        lowered = step.lower(state, batch, held(experiment, start))
        return sums_over(lowered.compile().as_text(), batch.tokens.size)

    everything, few = products(None), products(LoRA(2, of=("mixer", "channel")))
    weights = ("[16,16]", "[16,56]", "[56,16]", "[16,40]")
    assert sum(everything.count(shape) for shape in weights) >= 2 * 7 + 1
    assert [shape for shape in few if shape in weights] == []
    assert few.count("[2,56]") + few.count("[2,16]") >= 2 * 7  # gradients of B


def sums_over(text: str, tokens: int) -> list[str]:
    """The shapes of products, in a compiled text, that are sums over so many tokens."""
    shapes = dict(re.findall(r"%?([\w.-]+) = f32(\[[\d,]*\])", text))
    found = re.findall(
        r"= f32(\[[\d,]*\])\S* dot\((?:f32\S* )?%?([\w.-]+),.*lhs_contracting_dims=\{(\d)\}", text
    )
    return [shape for shape, left, axis in found if json.loads(shapes[left])[int(axis)] == tokens]


def test_one_product_has_the_gradients_of_three():
    """Of x (W + scale A B), by x, W, A and B, against float64 of x W + scale (x A) B."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((30, 7), (7, 11), (7, 2), (2, 11))
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    dy = jax.random.normal(keys[4], (30, 11))
    y, pull = jax.vjp(partial(_one_product, 0.7), *arrays)
    x, kernel, a, b = (np.asarray(array, np.float64) for array in arrays)
    d = np.asarray(dy, np.float64)
    wide = kernel + 0.7 * a @ b
    expected = (x @ wide, d @ wide.T, x.T @ d, 0.7 * x.T @ d @ b.T, 0.7 * a.T @ x.T @ d)
    for got, right in zip((y, *pull(dy)), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-6 * np.abs(right).max())


def test_what_is_merged_is_rounded_once():
    kernel = jnp.full((4, 4), 1.0, jnp.bfloat16)
    a, b = jnp.full((4, 3), 1.0, jnp.bfloat16), jnp.full((3, 4), 2**-9, jnp.bfloat16)
    # each of three terms is less than half of the last digit of 1; together they are more
    merged = merged_kernel(kernel, a, b, 1.0)
    assert merged.dtype == jnp.bfloat16
    assert (np.asarray(merged, np.float32) == 1 + 2**-7).all()
