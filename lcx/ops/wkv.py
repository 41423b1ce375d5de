"""RWKV-4's weighted key-value average: one decay a channel, normalised, stable in log space.

    wkv_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)

Peng et al. 2023, equations 16 and 24 to 29, with w <= 0 the log-decay of a token. The state is
(numerator, denominator, exponent): the true sums are e^exponent times the stored ones, so that
keys of any size neither overflow nor vanish. A token that starts a document forgets the state.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lcx.ops import chunks

Implementation = Literal["reference", "chunked"]


class WKVState(NamedTuple):
    """Running sums scaled by e^-exponent, in fp32; any leading axes."""

    numerator: Float[Array, "... D"]
    denominator: Float[Array, "... D"]
    exponent: Float[Array, "... D"]

    @classmethod
    def empty(cls, *shape: int) -> "WKVState":
        """The state before any token."""
        numerator, denominator = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        return cls(numerator, denominator, jnp.full(shape, -1e38, jnp.float32))


def _add(a: WKVState, b: WKVState) -> WKVState:
    """The sum of two states. The exponent only scales, so no gradient passes through it."""
    exponent = jax.lax.stop_gradient(jnp.maximum(a.exponent, b.exponent))
    scale_a, scale_b = jnp.exp(a.exponent - exponent), jnp.exp(b.exponent - exponent)
    return WKVState(
        a.numerator * scale_a + b.numerator * scale_b,
        a.denominator * scale_a + b.denominator * scale_b,
        exponent,
    )


def _decay(state: WKVState, log_decay: Float[Array, "... D"]) -> WKVState:
    """e^log_decay times the state; the exponent takes its value, the sums its gradient."""
    factor = _one(log_decay)
    return WKVState(
        state.numerator * factor,
        state.denominator * factor,
        state.exponent + jax.lax.stop_gradient(log_decay),
    )


def _token(k: Float[Array, "... D"], v: Float[Array, "... D"]) -> WKVState:
    """The state that holds one token alone."""
    return WKVState(_one(k) * v, _one(k), jax.lax.stop_gradient(k))


def _one(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """e^(x - x), whose value is 1 and whose first derivative is not 0, without the exponential."""
    return 1 + (x - jax.lax.stop_gradient(x))


def wkv4(
    w: Float[Array, " D"],
    u: Float[Array, " D"],
    k: Float[Array, "B T D"],
    v: Float[Array, "B T D"],
    *,
    starts: Bool[Array, "B T"] | None = None,
    state: WKVState | None = None,
    chunk: int = 32,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T D"], WKVState]:
    """Outputs in the dtype of `v`, and the final state.

    w: log-decay of a token, at most 0; u: bonus of the current token. Chunked, it takes
    chunk + T / chunk sequential steps in place of T.
    """
    batch, length, width = k.shape
    if starts is None:
        starts = jnp.zeros((batch, length), bool)
    if state is None:
        state = WKVState.empty(batch, width)
    w, u, fk, fv = (a.astype(jnp.float32) for a in (w, u, k, v))
    if implementation == "reference":
        out, state = _reference(w, u, fk, fv, starts, state)
    else:
        run = partial(_chunked, w, u, min(chunk, length))
        real = jnp.ones((1, length), bool)  # False where a slab is filled up
        out, state = chunks.in_slabs(run, (fk, fv, starts, real), state)
    return out.astype(v.dtype), state


def _read(before: WKVState, u, k, v):
    total = _add(before, _token(u + k, v))
    return total.numerator / total.denominator


def _forget(state: WKVState, where: Bool[Array, "..."]) -> WKVState:
    empty = WKVState.empty(*state.numerator.shape)
    return jax.tree.map(lambda e, s: jnp.where(where[..., None], e, s), empty, state)


def _reference(w, u, k, v, starts, state):
    """The recurrence, token by token."""

    def step(state, token):
        k, v, start = token
        state = _forget(state, start)
        return _add(_decay(state, w), _token(k, v)), _read(state, u, k, v)

    tokens = (jnp.moveaxis(k, 1, 0), jnp.moveaxis(v, 1, 0), starts.T)
    state, out = jax.lax.scan(step, state, tokens)
    return jnp.moveaxis(out, 0, 1), state


def _chunked(w, u, chunk, tokens, state):
    """All chunks step through their tokens together, then the state crosses the chunks."""
    length, width = tokens[0].shape[1:]
    K, V, new, real = (chunks.split(a, chunk) for a in tokens)  # what is not real adds nothing

    def step(local, token):
        k, v, start, real = token
        local = _forget(local, start)
        after = _add(_decay(local, w), _token(k, v))
        return jax.tree.map(lambda a, l: jnp.where(real[..., None], a, l), after, local), local

    by_token = tuple(jnp.moveaxis(a, 2, 0) for a in (K, V, new, real))
    whole, before = jax.lax.scan(step, WKVState.empty(*K.shape[:2], width), by_token)

    # The number of decays that a state entering the chunk has met before each token, and whether
    # a document began in between.
    steps = jnp.arange(chunk, dtype=jnp.float32)[:, None, None, None]
    begun = jnp.cumsum(jnp.moveaxis(new, 2, 0), axis=0) > 0
    decays = real.sum(axis=-1)[0].astype(jnp.float32)

    def cross(entering, chunk):
        whole, forgotten, decays = chunk
        carried = _forget(_decay(entering, decays * w), forgotten)
        return _add(carried, whole), entering

    by_chunk = (jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), whole), begun[-1].T, decays)
    state, entering = jax.lax.scan(cross, state, by_chunk)

    entering = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1)[None], entering)
    carried = _forget(_decay(entering, steps * w), begun)
    out = _read(_add(carried, before), u, jnp.moveaxis(K, 2, 0), jnp.moveaxis(V, 2, 0))
    return chunks.join(jnp.moveaxis(out, 0, 2), length), state
