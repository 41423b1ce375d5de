"""Linear recurrences with a decay of its own for every feature of the key.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T

    o_t = q_t S_t                                       gated linear attention
    o_t = q_t (S_{t-1} + diag(u) k_t v_t^T)             with a bonus u, as RWKV-5 and 6 read it

Yang et al. 2024 (arXiv:2312.06635), equation 3; Peng et al. 2024 (arXiv:2404.05892), equations 17
and 18. A token that starts a document finds `initial` in place of the state, or nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lcx.kernels import FASTEST_THERE_IS, Kernels, chosen
from lcx.ops import chunks, sums
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Affine, Shards

MIN_LOG_DECAY = -16.0
"""The least log-decay of a token in the chunked form: e^-16 is what fp32 rounds away beside 1."""


def gated_linear_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "b T H K"],
    *,
    bonus: Float[Array, "H K"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K V"] | None = None,
    initial: Float[Array, "1 H K V"] | None = None,
    shards: Shards | None = None,
    chunk: int = 64,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Outputs and the final state (fp32), in time and memory linear in T.

    `g` is the log-decay of each token and key feature, at most 0; its batch axis may be 1. `chunk`
    tokens at a time, a power of two, are compared pairwise.
    """
    batch, length, heads, width = q.shape
    chunk = chunks.halving(chunk, length)
    if starts is None:
        starts = jnp.zeros((1, length), bool)
    if state is None:
        state = jnp.zeros((batch, heads, width, v.shape[-1]), jnp.float32)
    u = None if bonus is None else bonus.astype(jnp.float32)
    tokens = (q, k, v, g.astype(jnp.float32), starts)
    if shards is not None:
        state = seqpar.entering(_summary(initial, tokens), state, shards)
    if chosen("gated_linear_attention", kernels, length) == "reference":
        o, after = _reference(tokens, u, initial, state)
    else:
        o, after = chunks.in_slabs(partial(_chunked, u, chunk, initial), tokens, state)
    return o, seqpar.last(after, shards)


def _summary(initial, tokens):
    """What the tokens do to any state."""
    _, k, v, g, starts = tokens
    g = jnp.maximum(g, MIN_LOG_DECAY)
    to_end, kept = chunks.decays_to_end(g, starts)
    K = k * to_end.astype(k.dtype)
    added = jnp.einsum("bthk,bthv->bhkv", K, v, preferred_element_type=jnp.float32)
    if initial is not None:
        added += chunks.decay_from_last_start(g, starts)[..., None] * initial
    return Affine(kept[..., None], added)


def _reference(tokens, u, initial, state):
    """The recurrence, token by token."""
    q, k, v, g, starts = tokens
    found = 0.0 if initial is None else initial

    def step(S, token):
        q, k, v, g, start = token
        S = jnp.where(start[:, None, None, None], found, S)
        new = k[..., :, None] * v[..., None, :]
        after = jnp.exp(g)[..., None] * S + new
        read = after if u is None else S + u[..., None] * new
        return after, jnp.einsum("bhk,bhkv->bhv", q, read)

    fp32 = [a.astype(jnp.float32) for a in (q, k, v)]
    by_token = tuple(jnp.moveaxis(a, 1, 0) for a in (*fp32, g, starts))
    state, o = jax.lax.scan(step, state, by_token)
    return jnp.moveaxis(o, 0, 1).astype(q.dtype), state


def _chunked(u, chunk, initial, tokens, state):
    """Pairs within a chunk first, all chunks at once; then the state, by a short scan."""
    q, k, v, g, starts = tokens
    length = q.shape[1]
    # [B, N, H, C, width]
    Q, K, V, G = (jnp.swapaxes(chunks.split(a, chunk), 2, 3) for a in (q, k, v, g))
    G = jnp.maximum(G, MIN_LOG_DECAY)
    to_key = chunks.running_sum(G)  # the decay from the chunk's start to behind each token
    to_query = to_key if u is None else to_key - G  # to what each query reads of the past
    starts = chunks.split(starts, chunk)
    document = jnp.cumsum(starts, axis=-1)

    # What each chunk adds to the state: its keys, decayed to its end, of its last document.
    last = document[..., -1:]
    to_end = jnp.exp(to_key[..., -1:, :] - to_key) * (document == last)[:, :, None, :, None]
    added = jnp.einsum(
        "bnhck,bnhcv->bnhkv", K * to_end.astype(K.dtype), V, preferred_element_type=jnp.float32
    )
    kept = jnp.exp(to_key[..., -1, :]) * (last == 0)[..., None]
    found = None
    if initial is not None:  # stands before a document's first token
        before = chunks.at_document_starts(to_key - G, starts)
        later = (document > 0)[:, :, None, :, None]
        left = jnp.exp(to_key[..., -1, :] - before[..., -1, :]) * later[..., -1, :]
        added += left[..., None] * initial
        from_initial = (jnp.exp(to_query - before) * later).astype(Q.dtype)
        there = jnp.broadcast_to(initial[:, None], added.shape)  # a state for each chunk, as below
        found = _read(Q * from_initial, there)

    def cross(S, chunk):
        kept, added = chunk
        return kept[..., None] * S + added, S

    by_chunk = (jnp.moveaxis(kept, 1, 0), jnp.moveaxis(added, 1, 0))
    state, entering = jax.lax.scan(cross, state, by_chunk)

    # What each query reads: the state that entered its chunk, and the keys before it.
    from_start = jnp.exp(to_query) * (document == 0)[:, :, None, :, None]
    o = _read(Q * from_start.astype(Q.dtype), jnp.moveaxis(entering, 0, 1))
    o = o if found is None else o + found
    same = document[..., :, None] == document[..., None, :]
    seen = jnp.tril(same, 0 if u is None else -1)[:, :, None]
    scores = pairs(Q, K, to_query, to_key, block=block_of(MIN_LOG_DECAY, chunk))
    scores = jnp.where(seen, scores, 0.0).astype(V.dtype)
    o = o + jnp.einsum("bnhij,bnhjv->bnhiv", scores, V, preferred_element_type=jnp.float32)
    if u is not None:
        own = jnp.einsum("bnhck,bnhck,hk->bnhc", *(a.astype(jnp.float32) for a in (Q, K)), u)
        o = o + own[..., None] * V
    return chunks.join(jnp.swapaxes(o, 2, 3), length).astype(q.dtype), state


def _read(q, S):
    """What queries [B N H C K] read of the state of their chunk, [B N H K V]."""
    return jnp.einsum(
        "bnhck,bnhkv->bnhcv", q, S.astype(q.dtype), preferred_element_type=jnp.float32
    )


def block_of(min_log_decay: float, chunk: int) -> int:
    """How many tokens `pairs` may take at once when no log-decay lies below `min_log_decay`.

    No factor then exceeds e^64; products of two overflow only for pairs that are masked.
    """
    while -min_log_decay * chunk / 2 > 64:
        chunk //= 2
    return chunk


def pairs(
    q: Float[Array, "B N H C K"],
    k: Float[Array, "B N H C K"],
    to_query: Float[Array, "b N H C K"],
    to_key: Float[Array, "b N H C K"],
    block: int,
) -> Float[Array, "B N H C C"]:
    """sum_k q_ik k_jk exp(to_query_ik - to_key_jk): a score of each pair of tokens j <= i.

    What stands at j > i has no meaning and is not always finite: the caller puts 0 there.

    One exponential a pair and feature would be too many, and taken apart into factors of i and of
    j they overflow. Relative to the decay at a middle token they do not: where the queries lie
    behind it and the keys before it both factors are at most 1, so each half of the chunk gets its
    pairs by itself, and the two halves theirs by a matrix product. `block` tokens are few enough
    for all their pairs to be taken at once (`block_of`).
    """
    C = q.shape[-2]
    half = C // 2
    middle = to_key[..., half - 1, None, :]
    if block >= C:
        q, k = (a.astype(jnp.float32) for a in (q, k))
        return (q * jnp.exp(to_query - middle)) @ (k * jnp.exp(middle - to_key)).mT
    behind, before = q[..., half:, :], k[..., :half, :]
    behind *= sums.spread(jnp.exp(to_query[..., half:, :] - middle), behind)
    before *= sums.spread(jnp.exp(middle - to_key[..., :half, :]), before)
    across = jnp.einsum("...ik,...jk->...ij", behind, before, preferred_element_type=jnp.float32)
    # the halves count as heads: XLA limits the number of axes
    N, H = q.shape[1:3]
    halves = (a.reshape(-1, N, 2 * H, half, a.shape[-1]) for a in (q, k, to_query, to_key))
    within = pairs(*halves, block=block)
    first, second = within[:, :, 0::2], within[:, :, 1::2]
    above = jnp.concatenate([first, jnp.zeros_like(across)], axis=-1)
    return jnp.concatenate([above, jnp.concatenate([across, second], axis=-1)], axis=-2)
