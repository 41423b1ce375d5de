"""The language model: streaming, hybrids, rematerialisation, losses in pieces."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lcx import logits as logits_of
from lcx.block import Block
from lcx.checking.bounds import rounding
from lcx.experiment import Experiment
from lcx.layers import CHANNELS, LayerNorm, RWKVChannelMix, SwiGLU
from lcx.losses import CrossEntropy
from lcx.mixers import (
    GLA,
    MIXERS,
    RGLRU,
    RWKV4,
    RWKV5,
    RWKV6,
    RWKV7,
    DeltaNet,
    GatedConv,
    GatedDeltaNet,
    Lightning,
    LinearAttention,
    Mamba2,
    RetNet,
    SoftmaxAttention,
)
from lcx.model import LM, WRITTEN_OUT, count_parameters
from lcx.parallel.mesh import Mesh, make_mesh, shardings
from lcx.positions import RoPE
from lcx.sparsity import Fixed, ShiftedGroups, Strided, TopBlocks, Window
from lcx.types import Batch, Context
from lcx.validation import check_cuts
from tests.bounds import assert_rounded

SMALL = SwiGLU(hidden=24)
HYBRID = LM(
    vocab=50,
    width=16,
    pattern=(
        Block(RetNet(heads=2), SMALL),
        Block(RWKV4(), RWKVChannelMix(hidden=24), LayerNorm()),
        Block(SoftmaxAttention(heads=2, sparsity=Window(8)), SMALL),
    ),
    repeats=2,
    embed_norm=LayerNorm(),
)


@pytest.fixture(scope="module")
def params():
    return moved(HYBRID)


def moved(model: LM):
    """Parameters away from their first values, of which some are zero."""
    fresh = jax.jit(model.init)(jax.random.key(0))
    return jax.tree.map(lambda a: a + 0.2 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), fresh)


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (2, 40), 0, 50)


def stack(*mixers, **settings):
    return LM(vocab=50, width=16, pattern=tuple(Block(m, SMALL) for m in mixers), **settings)


DEEP = stack(GLA(heads=2), repeats=WRITTEN_OUT + 1)
"""Its layers are a loop in training."""
LOCAL = SoftmaxAttention(heads=2, kv_heads=1, sparsity=Window(8))
MAMBA = Mamba2(state=8, head_width=8)
HYBRIDS = {
    "griffin": stack(RGLRU(heads=2), RGLRU(heads=2), LOCAL, repeats=1),
    "jamba": stack(MAMBA, SoftmaxAttention(heads=2), MAMBA, repeats=1),
    "gpt-3": stack(SoftmaxAttention(heads=2), LOCAL, repeats=2),
    "kimi": stack(GatedDeltaNet(heads=2), SoftmaxAttention(heads=2), repeats=1),
    # RWKV-7 hands its first layer's values on to the later ones, past a layer of another kind
    "values handed on": stack(RWKV7(heads=2), DeltaNet(heads=2), RWKV7(heads=2), repeats=1),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "gpt-3")) for name in HYBRIDS],
)
def test_a_hybrid_trains_streams_and_decodes(name, tokens):
    model, segments = HYBRIDS[name], segments_of(tokens)
    optimizer = optax.adam(1e-2)

    def nll(params):
        logits = model(params, Batch(tokens[:, :-1], segments=segments[:, :-1])).x
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(nll)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    params = jax.jit(model.init)(jax.random.key(0))
    state, losses = optimizer.init(params), []
    for _ in range(30):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert abs(losses[0] - np.log(50)) < 0.3
    assert losses[-1] < 0.7 * losses[0]

    batch = Batch(tokens, segments=segments)
    call = jax.jit(model)
    whole = call(params, batch).x
    state, logits = model.init_state(2, 40), []
    for begin, end in [(0, 13), (13, 36), *((t, t + 1) for t in range(36, 40))]:
        piece = jax.tree.map(lambda a, b=begin, e=end: a[:, b:e], batch)
        out, state, _ = call(params, piece, state)
        logits.append(out)
    # of logits up to 5; measured: up to 2.4e-6 without delta rules
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), whole, atol=1e-4)


@pytest.mark.slow
def test_rwkv7_mixes_the_first_layers_values_into_the_later_ones(tokens):
    """Written out: the second layer, told the first one's values, is the model's second layer."""
    model = LM(vocab=50, width=16, pattern=(Block(RWKV7(heads=2), SMALL),), repeats=2)
    params = moved(model)
    ctx = Context.of(jnp.arange(40)[None])
    x = params.embed(tokens)
    block, mixer = model.pattern[0], model.pattern[0].mixer
    handed = None
    for layer in range(2):
        own = jax.tree.map(lambda a, i=layer: a[i], params.blocks[0])
        normed = own.mixer_norm(x)
        handed = mixer.handed.initial(normed) if handed is None else handed
        (y, _, _), handed = mixer.share(own.mixer, normed, ctx, None, handed)
        x = x + y
        x = x + block.channel(own.channel, own.channel_norm(x), ctx).x
    expected = model.logits(params, params.norm(x))
    np.testing.assert_allclose(jax.jit(model)(params, Batch(tokens)).x, expected, atol=1e-4)
    alone = mixer(own.mixer, normed, ctx).x
    assert np.abs(np.asarray(alone - y)).max() > 1e-3  # the first layer's values count


def segments_of(tokens):
    return jnp.asarray([[1] * 13 + [2] * 27, [1] * 30 + [2] + [3] * 9], jnp.int32)


@pytest.mark.parametrize("packed", [True, False])
def test_a_hybrid_streams_packed_rows_as_it_reads_them_whole(params, tokens, packed):
    batch = Batch(tokens, segments=segments_of(tokens) if packed else None)
    call = jax.jit(HYBRID)
    whole = call(params, batch)
    assert whole.state is None
    state, pieces = HYBRID.init_state(2, 40), []
    for begin, end in [(0, 13), (13, 14), (14, 27), (27, 40)]:
        piece = jax.tree.map(lambda a, b=begin, e=end: a[:, b:e], batch)
        logits, state, _ = call(params, piece, state)
        pieces.append(logits)
    units = rounding(lambda p: call(p, batch).x, params)
    assert_rounded(jnp.concatenate(pieces, axis=1), whole.x, units)
    np.testing.assert_array_equal(state.position, [40, 40])


@pytest.mark.parametrize(
    ("model", "remat"),
    [
        (HYBRID, "dots"),
        (DEEP, "block"),
        *(
            pytest.param(model, remat, marks=pytest.mark.slow)
            for model, remat in [
                (HYBRID, "none"),
                (HYBRID, "block"),
                (DEEP, "none"),
                (DEEP, "dots"),
            ]
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else ("deep" if v is DEEP else "hybrid"),
)
def test_a_loop_and_rematerialisation_change_no_gradient(model, tokens, remat):
    """Those of the layers one by one, as streaming has them, are the reference."""
    params = moved(model)

    def gradients(model, state=None):
        return jax.jit(jax.grad(lambda p: model(p, Batch(tokens), state).x.std()))(params)

    streamed = gradients(model, model.init_state(*tokens.shape))
    trained = gradients(replace(model, remat=remat))
    for a, b in zip(jax.tree.leaves(streamed), jax.tree.leaves(trained), strict=True):
        # fused otherwise, it rounds otherwise: 2e-6 of gradients up to 1
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_layers_are_initialised_by_their_own_depth():
    model = LM(width=16, pattern=(Block(RWKV4(), RWKVChannelMix()),), repeats=3)
    decay = np.asarray(jax.jit(model.init)(jax.random.key(0)).blocks[0].mixer.decay[...])
    channel = np.arange(16) / 15
    for layer in range(3):
        expected = -5 + 8 * channel ** (0.7 + 1.3 * layer / 2)
        np.testing.assert_allclose(decay[layer], expected, atol=1e-5)
    bonus = np.asarray(jax.jit(model.init)(jax.random.key(0)).blocks[0].mixer.bonus[...])
    zigzag = np.sort(np.unique(bonus.round(4)))
    np.testing.assert_allclose(zigzag, np.log(0.3) + np.array([-0.5, 0, 0.5]), atol=1e-3)


def test_parameters_are_counted_without_being_made():
    model = LM(vocab=11, width=16, pattern=(Block(LinearAttention(heads=2), SMALL),), repeats=3)
    block = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    assert count_parameters(model) == 11 * 16 + 3 * block + 16
    assert count_parameters(replace(model, tied=False)) == 2 * 11 * 16 + 3 * block + 16


@pytest.mark.slow
def test_loss_in_pieces_equals_the_loss_of_all_logits(params, tokens, monkeypatch):
    weights = (jnp.arange(40) % 7 > 0).astype(jnp.float32)[None].repeat(2, 0)
    batch = Batch(tokens, targets=jnp.where(weights > 0, tokens, -1))
    loss = CrossEntropy(z=0.1)

    def sums(params):
        x = HYBRID.hidden(params, batch).x
        return loss(x, batch, partial(logits_of.over_logits, HYBRID, params))

    def gradients():
        return jax.jit(jax.grad(lambda p: sums(p).minimised))(params)

    whole, whole_gradients = jax.jit(lambda p: sums(p))(params), gradients()
    logits = jax.jit(HYBRID)(params, batch).x
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(whole.shown, -(picked * weights).sum(), rtol=1e-5)
    z2 = (jax.nn.logsumexp(logits, axis=-1) ** 2 * weights).sum()
    np.testing.assert_allclose(whole.minimised - whole.shown, 0.1 * z2, rtol=1e-4)
    monkeypatch.setattr(
        logits_of, "LOGITS", 2 * 50 * 7
    )  # 7 tokens at a time of 40: the last overlaps
    pieces, pieces_gradients = jax.jit(lambda p: sums(p))(params), gradients()
    for a, b in ((pieces.minimised, whole.minimised), (pieces.shown, whole.shown)):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(pieces_gradients), jax.tree.leaves(whole_gradients), strict=True
    ):
        # sums over tokens in another order: measured 4e-7 of the largest
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(abs(b).max(), 1))


@pytest.mark.parametrize("mixer", [*MIXERS.values()], ids=[*MIXERS])
def test_a_mesh_divides_the_heads_or_channels_of_every_mixer(mixer):
    halves = mixer(), SwiGLU(hidden=96)  # 3 divides 96, and not the width of 64
    with pytest.raises(ValueError, match=r"model = 3 does not divide .*mixer.*; nearest that do:"):
        check_cuts(cut(Block(*halves), 3))
    check_cuts(cut(Block(*halves), 2))


@pytest.mark.parametrize("channel", [*CHANNELS.values()], ids=[*CHANNELS])
def test_a_mesh_divides_the_hidden_width_of_every_channel_mixer(channel):
    block = Block(channel=channel(hidden=90))
    with pytest.raises(ValueError, match=r"model = 4 does not divide the 'mlp' axis of .*, 90; "):
        check_cuts(cut(block, 4))
    check_cuts(cut(block, 2))


def test_a_mesh_leaves_heads_whole():
    """It may divide the features of all heads, and still not the heads."""
    for mixer in (Mamba2(head_width=64), SoftmaxAttention(heads=2), RWKV7(heads=2)):
        with pytest.raises(ValueError, match=r"model = 4 does not divide the heads of .*, 2; "):
            check_cuts(cut(Block(mixer), 4))
    delta = Block(GatedDeltaNet(heads=8, key_heads=2))
    with pytest.raises(ValueError, match=r"4 does not divide the heads of keys of .*mixer, 2; "):
        check_cuts(cut(delta, 4))
    check_cuts(cut(delta, 2))
    # what each device computes for itself may be fewer
    for mixer in (Mamba2(head_width=16, groups=2), SoftmaxAttention(heads=8, kv_heads=2)):
        check_cuts(cut(Block(mixer), 4))


def cut(block: Block, model: int) -> Experiment:
    return Experiment(LM(width=64, pattern=(block,), repeats=1), mesh=Mesh(model=model))


def test_weights_are_cut_by_their_own_axis_names():
    mesh = make_mesh(Mesh(data=1, fsdp=4, model=2))
    where = shardings(jax.eval_shape(HYBRID.init, jax.random.key(0)), mesh)
    q = where.blocks[0].mixer.q.kernel.get_value()
    assert q.spec == jax.sharding.PartitionSpec(None, "fsdp", "model")  # stacked, D, heads
    assert where.norm.scale.get_value().spec == jax.sharding.PartitionSpec(None)


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (SoftmaxAttention(heads=3), "3 heads do not divide the model width 16; nearest .* 2 or 4"),
        (SoftmaxAttention(heads=4, kv_heads=3), "3 kv_heads do not divide 4 heads"),
        (SoftmaxAttention(heads=16), "heads of 1 are odd"),
        (SoftmaxAttention(heads=2, kv_heads=3), "3 kv_heads do not divide"),
        (LinearAttention(heads=0), "0 heads do not divide"),
        (RetNet(expand=0), "expand must be at least 1"),
        (LinearAttention(heads=2, feature_map="taylor", position=RoPE()), "heads of 73 are odd"),
        (
            SoftmaxAttention(heads=1, sparsity=ShiftedGroups(4)),
            "1 heads and 1 kv_heads must be even",
        ),
        (Mamba2(head_width=3), r"heads of 3 do not divide the inner width 2 \* 16"),
        (Mamba2(head_width=4, groups=3), "3 groups do not divide 8 heads; nearest .* 2 or 4"),
        (GatedDeltaNet(heads=4, key_heads=3), "3 key_heads do not divide 4 heads"),
        (GatedDeltaNet(heads=0, key_heads=1), "1 key_heads do not divide 0 heads"),
        (
            GatedDeltaNet(heads=6, key_heads=2),
            r"6 heads do not divide .* 2 \* 16; nearest .* 4 or 8",
        ),
        *(
            (cls(heads=3), f"{cls.__name__}: 3 heads do not divide the model width 16")
            for cls in (DeltaNet, GatedDeltaNet, GLA, Lightning, RGLRU, RWKV5, RWKV6, RWKV7)
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(mixer, message):
    model = LM(width=16, pattern=(Block(mixer),))
    with pytest.raises(ValueError, match=message):
        count_parameters(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0), "size must be at least 1"),
        (lambda: Window(4, sinks=-1), "sinks cannot be negative"),
        (lambda: Strided(0), "stride must be at least 1"),
        (lambda: Fixed(8, summary=9), "between 1 and block, not 9 of 8"),
        (lambda: ShiftedGroups(7), "group must be even, not 7"),
        (lambda: TopBlocks(8, top=0), "top 0 must be at least 1"),
        (lambda: SoftmaxAttention(softcap=0.0), "softcap must be positive"),
        (lambda: GLA(temperature=0.0), "temperature 0.0 must be positive"),
        (lambda: DeltaNet(kernel_size=0), "kernel_size must be at least 1"),
        (lambda: GatedDeltaNet(expand=0), "expand 0"),
        (lambda: GatedConv(kernel_size=0), "kernel_size must be at least 1"),
        (lambda: RGLRU(kernel_size=0), "kernel_size must be at least 1"),
        (lambda: Mamba2(state=0), "at least 1 in Mamba2"),
        (lambda: Mamba2(groups=0), "at least 1 in Mamba2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_piece_longer_than_the_state_is_refused():
    model = LM(vocab=50, width=16, repeats=1)
    params = jax.jit(model.init)(jax.random.key(0))
    with pytest.raises(ValueError, match="9 tokens exceeds the state's 8"):
        model(params, Batch(jnp.zeros((1, 9), jnp.int32)), model.init_state(1, 8))


@pytest.mark.parametrize("sparsity", [Fixed(4, summary=2), TopBlocks(4)], ids=repr)
def test_a_piece_of_more_blocks_than_the_state_is_refused(sparsity):
    mixer = SoftmaxAttention(heads=2, sparsity=sparsity)
    model = LM(vocab=50, width=16, pattern=(Block(mixer),), repeats=1)
    params = jax.jit(model.init)(jax.random.key(0))
    with pytest.raises(ValueError, match="12 tokens exceeds the state's 11"):
        model(params, Batch(jnp.zeros((1, 12), jnp.int32)), model.init_state(1, 8))


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(ValueError, match="data 16 takes 16 of 8 devices"):
        make_mesh(Mesh(data=16))
