"""Linear recurrences with one decay a head: a matrix-valued state read by every query.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = q_t S_t

With g = 0 this is linear attention (Katharopoulos et al. 2020, equations 16 to 20), with a
constant g per head it is retention (Sun et al. 2023, equation 6). A token that starts a document
finds `initial` in place of the state, or nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lcx.kernels import FASTEST_THERE_IS, Kernels, chosen
from lcx.ops import chunks
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Affine, Shards

MIN_LOG_DECAY = -20.0
"""The least log-decay of a token in the chunked form: e^-20 is nothing beside fp32's rounding."""


def linear_attention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    *,
    g: Float[Array, "b T H"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K V"] | None = None,
    initial: Float[Array, "1 H K V"] | None = None,
    shards: Shards | None = None,
    chunk: int = 64,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Outputs and the final state (fp32), in time and memory linear in T.

    With G < H, head j of queries and keys serves heads [j H/G, (j+1) H/G) of values and decays.
    `g` is the log-decay of each token, at most 0; its batch axis may be 1. None: no decay.
    `chunk` tokens at a time are compared pairwise; the state crosses from chunk to chunk.
    """
    batch, length, heads, _ = v.shape
    if heads % q.shape[2]:
        raise ValueError(f"{heads} heads of v must be a multiple of the {q.shape[2]} of q and k")
    if g is None:
        g = jnp.zeros((1, length, heads), jnp.float32)
    if starts is None:
        starts = jnp.zeros((1, length), bool)
    if state is None:
        state = jnp.zeros((batch, heads, q.shape[-1], v.shape[-1]), jnp.float32)
    tokens = (q, k, v, g.astype(jnp.float32), starts)
    if shards is not None:
        state = seqpar.entering(_summary(initial, tokens), state, shards)
    if chosen("linear_attention", kernels, length) == "reference":
        o, after = _reference(initial, tokens, state)
    else:
        run = partial(_chunked, min(chunk, length), initial)
        o, after = chunks.in_slabs(run, tokens, state)
    return o, seqpar.last(after, shards)


def _summary(initial, tokens):
    """What the tokens do to any state."""
    _, k, v, g, starts = tokens
    g = jnp.maximum(g, MIN_LOG_DECAY)[..., None]
    to_end, kept = chunks.decays_to_end(g, starts)
    V = (to_end.astype(v.dtype) * v).reshape(*v.shape[:2], k.shape[2], -1, v.shape[-1])
    added = _product("btgk,btgrv->bgrkv", k, V)
    added = added.reshape(added.shape[0], -1, *added.shape[3:])
    if initial is not None:
        added += chunks.decay_from_last_start(g, starts)[..., None] * initial
    return Affine(kept[..., None], added)


def _reference(initial, tokens, state):
    """The recurrence, token by token."""
    q, k, v, g, starts = tokens
    q, k = (jnp.repeat(a, v.shape[2] // a.shape[2], axis=2) for a in (q, k))
    found = 0.0 if initial is None else initial

    def step(S, token):
        q, k, v, g, start = token
        S = jnp.where(start[:, None, None, None], found, S)
        S = jnp.exp(g)[..., None, None] * S + k[..., :, None] * v[..., None, :]
        return S, jnp.einsum("bhk,bhkv->bhv", q, S)

    tokens = [jnp.moveaxis(a, 1, 0) for a in (*_fp32(q, k, v), g, starts)]
    state, o = jax.lax.scan(step, state, tuple(tokens))
    return jnp.moveaxis(o, 0, 1).astype(q.dtype), state


def _chunked(chunk, initial, tokens, state):
    """Pairs within a chunk by matrix products, all chunks at once; the state by a short scan."""
    q, k, v, g, starts = tokens
    length, groups = q.shape[1:3]
    # Q, K [B N G C K]; V, O and the state have R = H / G heads for each of them, [B N G R C V];
    # decay is [B N G R C], and the documents' numbers are [B N C]
    Q, K = (jnp.swapaxes(chunks.split(a, chunk), 2, 3) for a in (q, k))
    V, decay = (
        _grouped(chunks.split(a, chunk), groups) for a in (v, jnp.maximum(g, MIN_LOG_DECAY))
    )
    sums, own = chunks.Sums.of(decay, MIN_LOG_DECAY), decay
    decay = sums.total
    starts = chunks.split(starts, chunk)
    document = jnp.cumsum(starts, axis=-1)
    one = document[:, :, None, None]  # [B N 1 1 C]

    # What each chunk adds to the state: its tokens, decayed to its end, of its last document.
    last = one[..., -1:]
    to_end = jnp.exp(sums.to_end()) * (one == last)
    added = _product("bngck,bngrcv->bngrkv", K, V * to_end[..., None].astype(V.dtype))
    kept = jnp.exp(decay[..., -1]) * (last[..., 0] == 0)
    seen = jnp.tril(document[..., :, None] == document[..., None, :])[:, :, None, None]
    between = jnp.exp(sums.between(seen))
    found = None
    if initial is not None:  # stands before a document's first token
        first = jnp.exp(own) * starts[:, :, None, None]
        left = (between * first[..., None, :]).sum(axis=-1)
        initial = initial.reshape(groups, -1, *initial.shape[2:])
        added += left[..., -1, None, None] * initial
        there = jnp.broadcast_to(initial, added.shape)  # a state for each chunk, as below
        found = left[..., None] * _product("bngck,bngrkv->bngrcv", Q, there.astype(Q.dtype))

    def cross(S, chunk):
        kept, added = chunk
        return kept[..., None, None] * S + added, S

    by_chunk = (jnp.moveaxis(kept, 1, 0), jnp.moveaxis(added, 1, 0))
    S, entering = jax.lax.scan(cross, state.reshape(added[:, 0].shape), by_chunk)

    # What each query reads: the state that entered its chunk, and the keys before it.
    from_start = jnp.exp(decay) * (one == 0)
    o = from_start[..., None] * _product("bngck,nbgrkv->bngrcv", Q, entering.astype(Q.dtype))
    o = o if found is None else o + found
    scores = _product("bngik,bngjk->bngij", Q, K)[:, :, :, None] * between
    o = o + _product("bngrij,bngrjv->bngriv", scores.astype(V.dtype), V)
    o = jnp.moveaxis(o, 4, 2).reshape(*o.shape[:2], chunk, *v.shape[2:])
    return chunks.join(o, length).astype(q.dtype), S.reshape(state.shape)


def _grouped(x, groups):
    """[B N C H ...] -> [B N G R C ...]."""
    x = x.reshape(*x.shape[:3], groups, -1, *x.shape[4:])
    return jnp.moveaxis(x, 2, 4)


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _fp32(*arrays):
    return [a.astype(jnp.float32) for a in arrays]
