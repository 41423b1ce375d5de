"""Of distributions over the vocabulary: entropy, the largest, a threshold, a draw.

XLA's sort and argmax, and a random number for each token, take longer on a CPU than a step of a
small model with a large vocabulary. What is here gives the same in a third to a tenth of the time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Key, UInt32

from lcx.decoding.protocol import Logits, Mask


def entropy(logits: Float32[Array, "... vocab"]) -> Float32[Array, "..."]:
    """Entropy of the distributions that logits stand for, in nats; -inf is a chance of 0."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0), axis=-1)


def first(where: Mask) -> Int[Array, " B"]:
    """The lowest token id for which it holds."""
    vocab = where.shape[1]
    return jnp.min(jnp.where(where, jnp.arange(vocab), vocab - 1), axis=1)


def first_largest(logits: Logits) -> Int[Array, " B"]:
    """The most likely token of each row; of several the one with the lowest id."""
    return first(logits == jnp.max(logits, axis=1, keepdims=True))


def draw(keys: Key[Array, " B"], logits: Logits) -> Int[Array, " B"]:
    """The token at which the summed chances exceed a uniform number: one number a row.

    `jax.random.categorical` makes a number for each token, which takes ten times as long on a CPU.
    Chances are so rounded to about 1e-7; one of 0 stays 0.
    """
    chances = jax.nn.softmax(logits)
    # a prefix sum may round to less than the one before: a token is asked for its own chance, too
    summed = jnp.where(chances > 0, jnp.cumsum(chances, axis=1), 0.0)
    uniform = jax.vmap(jax.random.uniform)(keys)[:, None]
    return first(summed > uniform * jnp.max(summed, axis=1, keepdims=True))


def ordinals(values: Logits) -> UInt32[Array, "B vocab"]:
    """Integers in the order of the values; both zeros are one."""
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits < sign, bits | sign, ~bits)


def threshold(
    places: UInt32[Array, "B vocab"],
    weights: Logits,
    reached: Callable[[Float32[Array, "B 1"]], Bool[Array, "B 1"]],
) -> UInt32[Array, "B 1"]:
    """The lowest of the places (`ordinals`) up to which, itself included, the weights reach enough.

    The largest integer where they never do. Found bit by bit: 32 sums over the vocabulary are some
    ten times as fast as sorting it on a CPU.
    """

    def set_bit(i: Int[Array, ""], edge: UInt32[Array, "B 1"]) -> UInt32[Array, "B 1"]:
        further = edge | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        below = jnp.sum(jnp.where(places < further, weights, 0.0), axis=1, keepdims=True)
        return jnp.where(reached(below), edge, further)

    return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros((places.shape[0], 1), jnp.uint32))
