"""A recurrence without matrices: every channel is a running sum that decays by itself.

    h_t = exp(g_t) h_{t-1} + x_t

De et al. 2024 (arXiv:2402.19427), equation 4. A token that starts a document finds `initial`
in place of the state, or nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lcx.kernels import FASTEST_THERE_IS, Kernels, chosen
from lcx.ops import chunks
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Affine, Shards


def lru(
    x: Float[Array, "B T D"],
    g: Float[Array, "B T D"],
    *,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B D"] | None = None,
    initial: Float[Array, "1 D"] | None = None,
    shards: Shards | None = None,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """h of every token and the last, in fp32. `g`: log-decays, at most 0.

    The fast form takes log2(T) steps, each over all tokens of a slab.
    """
    if starts is None:
        starts = jnp.zeros((1, x.shape[1]), bool)
    if state is None:
        state = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
    x, g = x.astype(jnp.float32), g.astype(jnp.float32)
    if initial is not None:
        x += jnp.where(starts[..., None], jnp.exp(g) * initial[:, None], 0.0)
    tokens = (x, g, starts)
    if shards is not None:
        state = seqpar.entering(_summary(tokens), state, shards)
    if chosen("lru", kernels) == "reference":
        h, last = _reference(tokens, state)
    else:
        h, last = chunks.in_slabs(_parallel, tokens, state)
    return h, seqpar.last(last, shards)


def _summary(tokens):
    """What the tokens do to any state."""
    x, g, starts = tokens
    to_end, kept = chunks.decays_to_end(g[:, :, None], starts)
    return Affine(kept[:, 0], (to_end[:, :, 0] * x).sum(axis=1))


def _decay(g, starts):
    return jnp.where(starts[..., None], 0.0, jnp.exp(g))


def _reference(tokens, state):
    x, g, starts = tokens

    def step(h, token):
        decay, x = token
        h = decay * h + x
        return h, h

    by_token = (jnp.moveaxis(_decay(g, starts), 1, 0), jnp.moveaxis(x, 1, 0))
    state, h = jax.lax.scan(step, state, by_token)
    return jnp.moveaxis(h, 0, 1), state


def _parallel(tokens, state):
    x, g, starts = tokens

    def join(a, b):
        return a[0] * b[0], b[0] * a[1] + b[1]

    decay, h = jax.lax.associative_scan(join, (_decay(g, starts), x), axis=1)
    h = h + decay * state[:, None]
    return h, h[:, -1]
