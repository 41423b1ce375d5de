"""Sparsities against their definitions: a mask over every pair of tokens, and a dense softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.block import Block
from lcx.cost import training_flops
from lcx.kernels import Kernels
from lcx.mixers import MIXERS, GatedDeltaNet, Mamba2, SoftmaxAttention
from lcx.model import LM, count_parameters
from lcx.ops.block_attention import block_attention
from lcx.positions import NoPE
from lcx.sparsity import Fixed, Full, Request, ShiftedGroups, Sparsity, Strided, TopBlocks, Window
from lcx.types import Context, CountsFlops, Dims

B, T, H, G, K = 2, 60, 4, 2, 8


def shifted(t, s, head):
    """Groups of 8; of the second half of the heads, groups shifted by 4, the first a half one."""
    return t // 8 == s // 8 if head < H // 2 else (t + 4) // 8 == (s + 4) // 8


DEFINITIONS = {
    Full(): lambda t, s, head: True,
    Window(7): lambda t, s, head: t - s < 7,
    Window(5, sinks=2): lambda t, s, head: t - s < 5 or s < 2,
    Strided(6): lambda t, s, head: t - s < 6 or (t - s) % 6 == 0,
    Fixed(8, summary=3): lambda t, s, head: t // 8 == s // 8 or s % 8 >= 5,
    ShiftedGroups(8): shifted,
}


def inputs(length=T):
    rng = np.random.default_rng(0)
    shapes = (B, length, H, K), (B, length, G, K), (B, length, G, K)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def dense(q, k, v, seen):
    """Softmax attention in float64 to the keys that seen [B H T S] says."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    k, v = (np.repeat(a, H // G, axis=2) for a in (k, v))
    scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(K)
    weights = np.where(seen, np.exp(scores), 0.0)
    return np.einsum("bhts,bshv->bthv", weights / weights.sum(-1, keepdims=True), v)


def packed():
    """Two documents in the first row, three in the second; the rank of each token in its own."""
    ends = [[23, T], [1, 30, T]]
    segments, rank = np.zeros((2, B, T), np.int32)
    for row in range(B):
        begin = 0
        for number, end in enumerate(ends[row]):
            segments[row, begin:end], rank[row, begin:end] = number, np.arange(end - begin)
            begin = end
    return segments, rank


def attend(sparsity: Sparsity, q, k, v, segments):
    ctx = Context.of(jnp.arange(q.shape[1])[None].repeat(B, 0), segments)
    run = jax.jit(lambda *qkv: sparsity(Request(*qkv, ctx, NoPE())).o)
    return run(*map(jnp.asarray, (q, k, v)))


@pytest.mark.parametrize("sparsity", DEFINITIONS, ids=repr)
def test_a_query_sees_the_keys_of_the_definition(sparsity):
    q, k, v = inputs()
    segments, rank = packed()
    seen = np.zeros((B, H, T, T), bool)
    for b, h, t, s in np.ndindex(seen.shape):
        if s <= t and segments[b, t] == segments[b, s]:
            seen[b, h, t, s] = DEFINITIONS[sparsity](rank[b, t], rank[b, s], h)
    got = attend(sparsity, q, k, v, jnp.asarray(segments))
    np.testing.assert_allclose(got, dense(q, k, v, seen), atol=3e-6)


def chosen(q, k, segments, rank, block, top):
    """Which keys each query sees, by sorting the blocks that are complete before its own."""
    q, k = np.asarray(q, np.float64), np.repeat(np.asarray(k, np.float64), H // G, axis=2)
    seen = np.zeros((B, H, T, T), bool)
    for b, h, t in np.ndindex(B, H, T):
        first, own = t - rank[b, t], t - rank[b, t] % block
        seen[b, h, t, own : t + 1] = True
        starts = list(range(first, own, block))
        fit = [q[b, t, h] @ k[b, s : s + block, h].mean(axis=0) for s in starts]
        for i in np.argsort(fit)[::-1][:top]:
            seen[b, h, t, starts[i] : starts[i] + block] = True
    return seen


@pytest.mark.parametrize(("block", "top"), [(4, 3), (8, 1), (64, 2), (1, 5)])
def test_the_blocks_that_fit_best_are_seen(block, top):
    q, k, v = inputs()
    segments, rank = packed()
    got = attend(TopBlocks(block, top), q, k, v, jnp.asarray(segments))
    expected = dense(q, k, v, chosen(q, k, segments, rank, block, top))
    np.testing.assert_allclose(got, expected, atol=3e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_block_attention_in_both_forms(devices, monkeypatch):
    """One device takes heads in turn, many take them at once; more queries than one slab."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    rng = np.random.default_rng(0)
    shapes = (B, 700, H, K), (B, 20, 5, G, K), (B, 20, 5, G, K)
    q, k, v = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    before = jnp.sort(jnp.asarray(rng.integers(0, 21, (B, 700)), jnp.int32), axis=1)

    def gradients(kernels):
        def loss(q, k, v):
            o, lse = block_attention(q, k, v, before, top=3, kernels=kernels)
            return (o * jnp.cos(jnp.arange(K))).sum() + jnp.sin(lse).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for got, expected in zip(
        *map(jax.tree.leaves, map(gradients, map(Kernels, ("reference", "xla")))), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 8, 60])
@pytest.mark.parametrize("sparsity", DEFINITIONS, ids=repr)
def test_keys_seen_is_the_mean_of_the_definition(sparsity, length):
    def count(t):
        mask = [[DEFINITIONS[sparsity](t, s, h) for s in range(t + 1)] for h in range(H)]
        return np.sum(mask) / H

    assert sparsity.keys_seen(length) == pytest.approx(np.mean([count(t) for t in range(length)]))


def test_keys_seen_of_chosen_blocks():
    """Rank 20 of blocks of 8: its own five tokens, one block of two, and a look at both."""
    seen = [TopBlocks(8, top=1).keys_seen(n) * n for n in (20, 21)]
    assert seen[1] - seen[0] == pytest.approx(5 + 8 + 2 / 2)


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_tells_what_mixing_takes(name):
    """A cost table without a gap, and FLOPs that only softmax attention adds with the length."""
    mixer = MIXERS[name]()
    assert isinstance(mixer, CountsFlops)
    short, long = (mixer.mixing_flops(Dims(64, layers=2), n) for n in (64, 4096))
    assert (long > short) if name == "SoftmaxAttention" else (long == short)


@pytest.mark.parametrize(
    ("mixer", "each"),
    [
        (Mamba2(state=8, head_width=16), 5),  # decay, add, read
        (Mamba2(state=8, head_width=16, groups=4), 5),
        (GatedDeltaNet(heads=4, expand=3), 7),  # decay, read, replace, read
        (GatedDeltaNet(heads=8, expand=3, key_heads=2), 7),
    ],
    ids=repr,
)
def test_flops_of_a_recurrence_are_so_many_for_each_number_of_its_state(mixer, each):
    """However many heads share keys: each has a state of its own."""
    state = jax.eval_shape(lambda: mixer.init_state(Dims(64), 1, 1)).S
    assert mixer.mixing_flops(Dims(64), 100) == each * state.size


def test_flops_of_multi_head_attention_by_hand():
    model = LM(vocab=11, width=16, pattern=(Block(SoftmaxAttention(heads=2)),), repeats=3)
    # a score and a weighted value: two multiply-adds of 16 for each of the 50.5 keys seen
    mixing = 3 * (50.5 * 2 * 2 * 16)
    assert training_flops(model, 100) == pytest.approx(3 * (2 * count_parameters(model) + mixing))
