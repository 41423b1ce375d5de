"""A recurrence without matrices: every channel is a running sum that decays by itself.

    h_t = exp(g_t) h_{t-1} + x_t

De et al. 2024 (arXiv:2402.19427), equation 4. A token that starts a document forgets the state.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lcx.ops import chunks

Implementation = Literal["reference", "chunked"]


def lru(
    x: Float[Array, "B T D"],
    g: Float[Array, "B T D"],
    *,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B D"] | None = None,
    chunk: int = 16,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """h of every token and the last, in fp32. `g`: log-decays, at most 0.

    Chunked, it takes chunk + T / chunk sequential steps in place of T.
    """
    if starts is None:
        starts = jnp.zeros((1, x.shape[1]), bool)
    if state is None:
        state = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
    tokens = (x.astype(jnp.float32), g.astype(jnp.float32), starts)
    if implementation == "reference":
        by_token = (jnp.moveaxis(a, 1, 0) for a in (_decay(*tokens[1:]), tokens[0]))
        state, h = jax.lax.scan(_step, state, tuple(by_token))
        return jnp.moveaxis(h, 0, 1), state
    return chunks.in_slabs(partial(_chunked, min(chunk, x.shape[1])), tokens, state)


def _decay(g, starts):
    return jnp.where(starts[..., None], 0.0, jnp.exp(g))


def _step(h, token):
    decay, x = token
    h = decay * h + x
    return h, h


def _chunked(chunk, tokens, state):
    """All chunks step through their tokens together, then the state crosses the chunks."""
    length = tokens[0].shape[1]
    x, g, starts = (jnp.moveaxis(chunks.split(a, chunk), 2, 0) for a in tokens)
    decay = _decay(g, starts)
    _, local = jax.lax.scan(_step, jnp.zeros_like(x[0]), (decay, x))
    kept = jnp.cumprod(decay, axis=0)

    def cross(h, chunk):
        kept, added = chunk
        return kept * h + added, h

    by_chunk = (jnp.moveaxis(kept[-1], 1, 0), jnp.moveaxis(local[-1], 1, 0))
    state, entering = jax.lax.scan(cross, state, by_chunk)
    h = local + kept * jnp.moveaxis(entering, 0, 1)
    return chunks.join(jnp.moveaxis(h, 0, 2), length), state
