"""RWKV-4's weighted key-value average: one decay a channel, normalised, stable in log space.

    wkv_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)

Peng et al. 2023, equations 16 and 24 to 29, with w <= 0 the log-decay of a token. The state is
(numerator, denominator, exponent): the true sums are e^exponent times the stored ones, so that
keys of any size neither overflow nor vanish. A token that starts a document finds `initial` in
place of the state, or nothing.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32

from lcx.kernels import FASTEST_THERE_IS, Kernels, chosen
from lcx.ops import chunks
from lcx.ops.lru import lru
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards

EMPTY = -1e38
"""The exponent of a sum of nothing: finite, so that no difference of two is NaN."""


class WKVState(NamedTuple):
    """Running sums scaled by e^-exponent, in fp32; any leading axes."""

    numerator: Float32[Array, "... D"]
    denominator: Float32[Array, "... D"]
    exponent: Float32[Array, "... D"]

    @classmethod
    def empty(cls, *shape: int) -> "WKVState":
        """The state before any token."""
        numerator, denominator = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        return cls(numerator, denominator, jnp.full(shape, EMPTY, jnp.float32))


def _add(a: WKVState, b: WKVState) -> WKVState:
    """The sum of two states. The exponent only scales, so no gradient passes through it."""
    exponent = lax.stop_gradient(jnp.maximum(a.exponent, b.exponent))
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
        state.exponent + lax.stop_gradient(log_decay),
    )


def _token(k: Float[Array, "... D"], v: Float[Array, "... D"]) -> WKVState:
    """The state that holds one token alone."""
    return WKVState(_one(k) * v, _one(k), lax.stop_gradient(k))


def _one(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """e^(x - x), whose value is 1 and whose first derivative is not 0, without the exponential."""
    return 1 + (x - lax.stop_gradient(x))


def wkv4(
    w: Float[Array, " D"],
    u: Float[Array, " D"],
    k: Float[Array, "B T D"],
    v: Float[Array, "B T D"],
    *,
    starts: Bool[Array, "B T"] | None = None,
    state: WKVState | None = None,
    initial: WKVState | None = None,
    shards: Shards | None = None,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B T D"], WKVState]:
    """Outputs in the dtype of `v`, and the final state.

    w: log-decay of a token, at most 0; u: bonus of the current token. The fast form finds all
    exponents first, which leaves a plain decaying sum (`lru`).
    """
    batch, length, width = k.shape
    if starts is None:
        starts = jnp.zeros((batch, length), bool)
    if state is None:
        state = WKVState.empty(batch, width)
    # an exponent is a unit, not a value
    state = state._replace(exponent=lax.stop_gradient(state.exponent))
    if initial is not None:
        initial = initial._replace(exponent=lax.stop_gradient(initial.exponent))
    w, u, fk, fv = (a.astype(jnp.float32) for a in (w, u, k, v))
    tokens = (fk, fv, starts)
    if shards is not None:
        before = _Piece(jnp.zeros_like(state.exponent), state)
        state = seqpar.carry(_one_after, before, _summary(w, initial, tokens), shards).added
    if chosen("wkv4", kernels, length) == "reference":
        out, after = _reference(w, u, initial, tokens, state)
    else:
        run = partial(_scaled, kernels, w, u, initial)
        out, after = chunks.in_slabs(run, tokens, state, slab=1024)
    return out.astype(v.dtype), seqpar.last(after, shards)


class _Piece(NamedTuple):
    """What some tokens do to any state: decay it, and add to it."""

    decay: Float[Array, "B D"]
    """In log space; EMPTY where a document starts."""
    added: WKVState


def _one_after(first: _Piece, then: _Piece) -> _Piece:
    added = _add(_decayed(first.added, then.decay), then.added)
    return _Piece(jnp.maximum(first.decay + then.decay, EMPTY), added)


def _decayed(state: WKVState, log_decay: Float[Array, "... D"]) -> WKVState:
    """As `_decay`; of sums of nothing the exponent would sink out of fp32."""
    after = _decay(state, log_decay)
    return after._replace(exponent=jnp.maximum(after.exponent, EMPTY))


def _summary(w, initial, tokens) -> _Piece:
    k, v, starts = tokens
    length = k.shape[1]
    later = chunks.starts_from(starts)
    last = (later == starts)[..., None]
    weight = k + w * jnp.arange(length - 1, -1, -1, dtype=jnp.float32)[:, None]
    exponent = lax.stop_gradient(jnp.where(last, weight, EMPTY).max(axis=1))
    terms = jnp.where(last, jnp.exp(jnp.where(last, weight, EMPTY) - exponent[:, None]), 0.0)
    added = WKVState((terms * v).sum(axis=1), terms.sum(axis=1), exponent)
    if initial is not None:  # what the last document began from, since its start, if there is one
        since = last.sum(axis=1, dtype=jnp.float32)
        found = jax.tree.map(
            lambda a, empty: jnp.where(starts.any(axis=1, keepdims=True), a, empty),
            _decayed(initial, since * w),
            WKVState.empty(1, k.shape[2]),
        )
        added = _add(added, found)
    return _Piece(jnp.where(later[:, :1] == 0, length * w, EMPTY), added)


def _read(before: WKVState, u, k, v):
    total = _add(before, _token(u + k, v))
    return total.numerator / total.denominator


def _reference(w, u, initial, tokens, state):
    """The recurrence, token by token."""
    initial = WKVState.empty(1, len(w)) if initial is None else initial

    def step(state, token):
        k, v, start = token
        state = jax.tree.map(lambda i, s: jnp.where(start[:, None], i, s), initial, state)
        return _add(_decay(state, w), _token(k, v)), _read(state, u, k, v)

    by_token = tuple(jnp.moveaxis(a, 1, 0) for a in tokens)
    state, out = lax.scan(step, state, by_token)
    return jnp.moveaxis(out, 0, 1), state


def _scaled(kernels, w, u, initial, tokens, state):
    """Exponents by a loop of one maximum a token, exponentials of all tokens at once, then sums."""
    k, v, starts = tokens
    units = state.exponent, EMPTY if initial is None else initial.exponent
    before, after = _exponents(lax.stop_gradient(w), lax.stop_gradient(k), starts, *units)
    weight = jnp.exp(k - after)
    x = jnp.concatenate([weight * v, weight], axis=-1)
    decay = jnp.tile(w + before - after, 2)
    sums = jnp.concatenate([state.numerator, state.denominator], axis=-1)
    if initial is None:  # at a start the exponent is EMPTY, which decays all that was
        each, last = lru(x, decay, state=sums, kernels=kernels)
        each = jnp.concatenate([sums[:, None], each[:, :-1]], axis=1)  # before each token
    else:
        found = jnp.concatenate([initial.numerator, initial.denominator], axis=-1)
        each, last = lru(x, decay, starts=starts, state=sums, initial=found, kernels=kernels)
        each = jnp.concatenate([sums[:, None], each[:, :-1]], axis=1)
        each = jnp.where(starts[..., None], found[:, None], each)
    width = k.shape[-1]
    out = _read(WKVState(each[..., :width], each[..., width:], before), u, k, v)
    return out, WKVState(last[:, :width], last[:, width:], after[:, -1])


def _exponents(w, k, starts, exponent, found):
    """The state's exponent before and after each token: the largest term's, decayed."""

    def step(exponent, token):
        k, start = token
        before = jnp.where(start[:, None], found, exponent)
        after = jnp.maximum(before + w, k)
        return after, (before, after)

    _, each = lax.scan(step, exponent, (jnp.moveaxis(k, 1, 0), starts.T))
    return tuple(jnp.moveaxis(a, 0, 1) for a in each)
