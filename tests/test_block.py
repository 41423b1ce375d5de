"""Kinds of blocks against their equations, whole and in pieces."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.block import Block, ParallelBlock, PostNormBlock, SandwichBlock
from lcx.checking.trial import compiled
from lcx.layers import LayerNorm, RWKVChannelMix
from lcx.mixers import RWKV4
from lcx.model import LM
from lcx.types import Batch, Context
from tests.test_model import moved

PARTS = {"mixer": RWKV4(), "channel": RWKVChannelMix(24), "norm": LayerNorm()}


def pre(p, x, mix, change):
    x = x + mix(p.mixer_norm(x))
    return x + change(p.channel_norm(x))


def post(p, x, mix, change):
    x = p.mixer_norm(x + mix(x))
    return p.channel_norm(x + change(x))


def sandwich(p, x, mix, change):
    x = x + p.mixer_after(mix(p.mixer_norm(x)))
    return x + p.channel_after(change(p.channel_norm(x)))


def parallel(p, x, mix, change):
    return x + mix(p.mixer_norm(x)) + change(p.channel_norm(x))


def one_norm(p, x, mix, change):
    return x + mix(p.mixer_norm(x)) + change(p.mixer_norm(x))


def alone(p, x, mix, change):
    return x + mix(p.mixer_norm(x))


KINDS = {
    "pre-norm": (Block(**PARTS), pre),
    "post-norm": (PostNormBlock(**PARTS), post),
    "sandwich": (SandwichBlock(**PARTS), sandwich),
    "parallel": (ParallelBlock(**PARTS), parallel),
    "parallel, one norm": (ParallelBlock(**PARTS, one_norm=True), one_norm),
    "mixer alone": (Block(**PARTS | {"channel": None}), alone),
    "mixer alone, post-norm": (
        PostNormBlock(**PARTS | {"channel": None}),
        lambda p, x, mix, change: p.mixer_norm(x + mix(x)),
    ),
    "mixer alone, sandwich": (
        SandwichBlock(**PARTS | {"channel": None}),
        lambda p, x, mix, change: x + p.mixer_after(mix(p.mixer_norm(x))),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_block_is_its_equation_whole_and_in_pieces(name):
    block, equation = KINDS[name]
    model = LM(vocab=20, width=16, pattern=(block,), repeats=1)
    params = moved(model)
    own = jax.tree.map(lambda a: a[0], params.blocks[0])
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 20)
    ctx = Context.of(jnp.arange(12)[None].repeat(2, 0))
    x = params.embed(tokens)

    def expected(own, x):
        mix = lambda h: block.mixer(own.mixer, h, ctx).x  # noqa: E731
        change = lambda h: block.channel(own.channel, h, ctx).x  # noqa: E731
        return model.logits(params, params.norm(equation(own, x, mix, change)))

    call = compiled(partial(model))
    whole = call(params, Batch(tokens)).x
    # of logits up to 3; measured: up to 5e-7
    np.testing.assert_allclose(whole, compiled(expected)(own, x), atol=5e-6)
    first, state, _ = call(params, Batch(tokens[:, :6]), model.init_state(2, 12))
    second, _, _ = call(params, Batch(tokens[:, 6:]), state)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=5e-6)


def test_what_makes_no_block_is_refused():
    with pytest.raises(ValueError, match="ParallelBlock: without a channel mixer nothing is par"):
        ParallelBlock(channel=None)
    with pytest.raises(ValueError, match=r"SandwichBlock: dropout must be in \[0, 1\), not 1"):
        SandwichBlock(dropout=1.0)
    with pytest.raises(ValueError, match="LM: softcap must be positive, not 0"):
        LM(softcap=0.0)


def test_logits_are_capped_and_the_embedding_multiplied():
    plain = LM(vocab=20, width=16, pattern=(Block(**PARTS),), repeats=1)
    capped = LM(
        *(20, 16, (Block(**PARTS),)), repeats=1, softcap=0.1, embed_factor=4.0, embed_norm=None
    )
    params = moved(plain)
    tokens = jax.random.randint(jax.random.key(1), (1, 8), 0, 20)
    larger = jax.tree.map(lambda a: a, params)
    larger.embed.embedding[...] = 4 * params.embed.embedding[...]
    hidden = plain.hidden(larger, Batch(tokens)).x
    expected = 0.1 * jnp.tanh(plain.logits(params, hidden) / 0.1)
    np.testing.assert_allclose(capped(params, Batch(tokens)).x, expected, atol=1e-6)
