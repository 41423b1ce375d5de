"""Delta rules: recurrences that replace what the state holds for a key, where others add to it.

One decay a head (Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464, equation 10):

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        o_t = q_t S_t

One decay a feature, and a removal key a and a replacement key b of their own (RWKV-7, Peng et al.
2025, arXiv:2503.14456, equation 17):

    S_t = diag(exp(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T          o_t = q_t S_t

A token that starts a document forgets the state before all else.

Within a chunk the reads of the state depend on one another through a triangular system; its inverse
turns the chunk into one affine map of the state (the WY form of arXiv:2406.06484, section 3.2):
all chunks' maps are made at once, and a short scan over chunks applies them.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lcx.ops import chunks
from lcx.ops.gated_linear_attention import STRONGEST, block_of, pairs
from lcx.ops.triangular import inverse

Implementation = Literal["reference", "chunked"]


def delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    beta: Float[Array, "B T H"],
    *,
    g: Float[Array, "B T H"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K V"] | None = None,
    chunk: int = 64,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Outputs and the final state (fp32), in time and memory linear in T.

    Keys are expected to have length 1 and beta to lie in [0, 2]: beyond, the state can grow without
    bound. `g` is the log-decay of each token, at most 0; None: no decay. `chunk`: a power of two.
    """
    chunks.check_halves(chunk)
    if g is None:
        g = jnp.zeros_like(beta)
    if implementation == "reference":
        write = beta[..., None].astype(jnp.float32) * k.astype(jnp.float32)
        erase = -jnp.exp(g.astype(jnp.float32))[..., None] * k.astype(jnp.float32)
        decay = jnp.broadcast_to(g[..., None], k.shape)
        return _reference(q, write, v, erase, write, decay, starts, state)
    run = partial(_scalar_chunks, chunk)
    return _in_slabs(run, (q, k, v, beta.astype(jnp.float32), g.astype(jnp.float32)), starts, state)


def diagonal_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    g: Float[Array, "B T H K"],
    *,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K V"] | None = None,
    chunk: int = 32,
    strongest: float = STRONGEST,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """As `delta_rule`, with a log-decay `g` a feature, and b a^T in place of -beta k k^T.

    RWKV-7 has a = -kappa and b = kappa * eta for a kappa of length 1 and eta in [0, 1]. `chunk`: a
    power of two. `strongest`: no log-decay lies below it; the weaker, the larger matrix products.
    """
    chunks.check_halves(chunk)
    if implementation == "reference":
        return _reference(q, k, v, a, b, g, starts, state)
    run = partial(_diagonal_chunks, chunk, strongest)
    return _in_slabs(run, (q, k, v, a, b, g.astype(jnp.float32)), starts, state)


def _empty(q, v):
    return jnp.zeros((q.shape[0], *q.shape[2:], v.shape[-1]), jnp.float32)


def _reference(q, k, v, a, b, g, starts, state):
    """The recurrence of the second form, token by token."""
    starts = jnp.zeros((1, q.shape[1]), bool) if starts is None else starts

    def step(S, token):
        q, k, v, a, b, g, start = token
        S = jnp.where(start[:, None, None, None], 0.0, S)
        read = jnp.einsum("bhk,bhkv->bhv", a, S)
        S = jnp.exp(g)[..., None] * S + b[..., None] * read[..., None, :]
        S = S + k[..., None] * v[..., None, :]
        return S, jnp.einsum("bhk,bhkv->bhv", q, S)

    fp32 = [x.astype(jnp.float32) for x in (q, k, v, a, b, g)]
    by_token = tuple(jnp.moveaxis(x, 1, 0) for x in (*fp32, starts))
    state, o = jax.lax.scan(step, _empty(q, v) if state is None else state, by_token)
    return jnp.moveaxis(o, 0, 1).astype(q.dtype), state


def _in_slabs(run, tokens, starts, state):
    q, _, v = tokens[:3]
    starts = jnp.zeros((1, q.shape[1]), bool) if starts is None else starts
    return chunks.in_slabs(run, (*tokens, starts), _empty(q, v) if state is None else state)


def _split(chunk, tokens):
    """[B, T, H, ...] -> [B, N, H, C, ...] in fp32, and the documents' numbers [B, N, C]."""
    *tokens, starts = tokens
    split = [jnp.swapaxes(chunks.split(x, chunk), 2, 3).astype(jnp.float32) for x in tokens]
    return split, jnp.cumsum(chunks.split(starts, chunk), axis=-1)


def _scalar_chunks(chunk, tokens, state):
    dtype, length = tokens[0].dtype, tokens[0].shape[1]
    (q, k, v, beta, g), document = _split(chunk, tokens)
    decay = jnp.cumsum(jnp.maximum(g, STRONGEST), axis=-1)
    document = document[:, :, None]
    last = document[..., -1:]
    seen = jnp.tril(document[..., :, None] == document[..., None, :])
    between = jnp.exp(jnp.where(seen, decay[..., :, None] - decay[..., None, :], -jnp.inf))
    from_start = (jnp.exp(decay) * (document == 0))[..., None]
    to_end = (jnp.exp(decay[..., -1:] - decay) * (document == last))[..., None]

    # What is written for a token: its value less what the state held for its key, which the tokens
    # before it in the chunk have changed: writes = v - (read + pairs writes).
    write = beta[..., None] * k
    solved = inverse(-(k @ write.mT) * between)
    reads, writes = solved @ -(from_start * k), solved @ v  # of the entering state, and without it
    kept = jnp.exp(decay[..., -1]) * (last[..., 0] == 0)
    end = (to_end * write).mT
    map_ = kept[..., None, None] * jnp.eye(k.shape[-1]) + end @ reads
    state, entering = _cross(map_, end @ writes, state)
    o = (from_start * q) @ entering + ((q @ write.mT) * between) @ (writes + reads @ entering)
    return chunks.join(jnp.swapaxes(o, 2, 3), length).astype(dtype), state


def _diagonal_chunks(chunk, strongest, tokens, state):
    dtype, length = tokens[0].dtype, tokens[0].shape[1]
    (q, k, v, a, b, g), document = _split(chunk, tokens)
    g = jnp.maximum(g, strongest)
    after = jnp.cumsum(g, axis=-2)  # the decay from the chunk's start to behind each token
    before = after - g
    document = document[:, :, None]
    last = document[..., -1:]
    same = document[..., :, None] == document[..., None, :]
    fresh = (document == 0)[..., None]
    to_end = jnp.exp(after[..., -1:, :] - after) * (document == last)[..., None]

    # What a token reads of the state, which the tokens before it in the chunk have changed:
    # reads = a S + pairs(a, b) reads + pairs(a, k) v.
    scores = partial(pairs, block=block_of(strongest, chunk))
    ab, ak = (jnp.where(same, scores(a, x, before, after, strict=True), 0.0) for x in (b, k))
    qb, qk = (jnp.where(same, scores(q, x, after, after, strict=False), 0.0) for x in (b, k))
    solved = inverse(ab)
    reads = solved @ (a * jnp.exp(before) * fresh)  # of the entering state
    own = solved @ (ak @ v)  # and of the chunk's
    kept = jnp.exp(after[..., -1, :]) * (last == 0)
    end = (b * to_end).mT
    map_ = kept[..., None] * jnp.eye(k.shape[-1]) + end @ reads
    state, entering = _cross(map_, end @ own + (k * to_end).mT @ v, state)
    o = (q * jnp.exp(after) * fresh) @ entering + qb @ (own + reads @ entering) + qk @ v
    return chunks.join(jnp.swapaxes(o, 2, 3), length).astype(dtype), state


def _cross(
    map_: Float[Array, "B N H K K"],
    added: Float[Array, "B N H K V"],
    state: Float[Array, "B H K V"],
) -> tuple[Float[Array, "B H K V"], Float[Array, "B N H K V"]]:
    """The state after S <- map S + added of every chunk in turn, and the state before each."""

    def step(S, chunk):
        map_, added = chunk
        return map_ @ S + added, S

    by_chunk = (jnp.moveaxis(map_, 1, 0), jnp.moveaxis(added, 1, 0))
    state, entering = jax.lax.scan(step, state, by_chunk)
    return state, jnp.moveaxis(entering, 0, 1)
