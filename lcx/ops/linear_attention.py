"""Linear recurrences with one decay a head: a matrix-valued state read by every query.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = q_t S_t

With g = 0 this is linear attention (Katharopoulos et al. 2020, equations 16 to 20), with a
constant g per head it is retention (Sun et al. 2023, equation 6). A token that starts a document
forgets the state before adding itself.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lcx.ops import chunks

Implementation = Literal["reference", "chunked"]


def linear_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    *,
    g: Float[Array, "b T H"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K V"] | None = None,
    chunk: int = 64,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Outputs and the final state (fp32), in time and memory linear in T.

    `g` is the log-decay of each token, at most 0; its batch axis may be 1. None: no decay.
    `chunk` tokens at a time are compared pairwise; the state crosses from chunk to chunk.
    """
    batch, length, heads, width = q.shape
    if g is None:
        g = jnp.zeros((1, length, heads), jnp.float32)
    if starts is None:
        starts = jnp.zeros((1, length), bool)
    if state is None:
        state = jnp.zeros((batch, heads, width, v.shape[-1]), jnp.float32)
    tokens = (q, k, v, g.astype(jnp.float32), starts)
    if implementation == "reference":
        return _reference(tokens, state)
    return chunks.in_slabs(partial(_chunked, min(chunk, length)), tokens, state)


def _reference(tokens, state):
    """The recurrence, token by token."""
    q, k, v, g, starts = tokens

    def step(S, token):
        q, k, v, g, start = token
        S = jnp.where(start[:, None, None, None], 0.0, jnp.exp(g)[..., None, None] * S)
        S = S + k[..., :, None] * v[..., None, :]
        return S, jnp.einsum("bhk,bhkv->bhv", q, S)

    tokens = [jnp.moveaxis(a, 1, 0) for a in (*_fp32(q, k, v), g, starts)]
    state, o = jax.lax.scan(step, state, tuple(tokens))
    return jnp.moveaxis(o, 0, 1).astype(q.dtype), state


def _chunked(chunk, tokens, state):
    """Pairs within a chunk by matrix products, all chunks at once; the state by a short scan."""
    q, k, v, g, starts = tokens
    length = q.shape[1]
    # [B, N, H, C, width] for the products, [B, N, C] and [B, N, H, C] for decay and documents
    Q, K, V = (jnp.swapaxes(chunks.split(a, chunk), 2, 3) for a in (q, k, v))
    decay = jnp.cumsum(jnp.swapaxes(chunks.split(g, chunk), 2, 3), axis=-1)
    document = jnp.cumsum(chunks.split(starts, chunk), axis=-1)

    # What each chunk adds to the state: its keys, decayed to its end, of its last document.
    last = document[..., -1:]
    to_end = jnp.exp(decay[..., -1:] - decay) * (document == last)[:, :, None]
    added = jnp.einsum(
        "bnhck,bnhcv->bnhkv",
        K * to_end[..., None].astype(K.dtype),
        V,
        preferred_element_type=jnp.float32,
    )
    kept = jnp.exp(decay[..., -1]) * (last == 0)

    def cross(S, chunk):
        kept, added = chunk
        return kept[..., None, None] * S + added, S

    by_chunk = (jnp.moveaxis(kept, 1, 0), jnp.moveaxis(added, 1, 0))
    state, entering = jax.lax.scan(cross, state, by_chunk)

    # What each query reads: the state that entered its chunk, and the keys before it.
    from_start = jnp.exp(decay) * (document == 0)[:, :, None]
    o = from_start[..., None] * jnp.einsum(
        "bnhck,nbhkv->bnhcv", Q, entering.astype(Q.dtype), preferred_element_type=jnp.float32
    )
    scores = jnp.einsum("bnhik,bnhjk->bnhij", Q, K, preferred_element_type=jnp.float32)
    seen = jnp.tril(document[..., :, None] == document[..., None, :])[:, :, None]
    # masked before the exponential: after it, a masked overflow would give NaN gradients
    between = jnp.where(seen, decay[..., :, None] - decay[..., None, :], -jnp.inf)
    scores = (scores * jnp.exp(between)).astype(V.dtype)
    o = o + jnp.einsum("bnhij,bnhjv->bnhiv", scores, V, preferred_element_type=jnp.float32)
    return chunks.join(jnp.swapaxes(o, 2, 3), length).astype(q.dtype), state


def _fp32(*arrays):
    return [a.astype(jnp.float32) for a in arrays]
