"""Cut the time axis into pieces: what every chunked recurrence begins and ends with."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def split(x: Shaped[Array, "B T ..."], chunk: int) -> Shaped[Array, "B N C ..."]:
    """[B, T, ...] -> [B, N, C, ...], with zeros (False) after the last token."""
    pad = -x.shape[1] % chunk
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:])


def join(x: Shaped[Array, "B N C ..."], length: int) -> Shaped[Array, "B T ..."]:
    """The inverse of `split`: back to `length` tokens, the padding dropped."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


class Sums(NamedTuple):
    """Running sums of log-decays, in two parts whose differences lose nothing to large sums.

    In one fp32 number a chunk's sum may reach -1000, and the difference of two neighbours then
    carries its rounding, 6e-5, though it may itself be next to nothing. The coarse part holds
    multiples of a power of two, which fp32 adds without rounding; the fine part stays small.
    """

    coarse: Float[Array, "... C"]
    fine: Float[Array, "... C"]

    @classmethod
    def of(cls, g: Float[Array, "... C"], min_log_decay: float) -> "Sums":
        """Up to and with each token. g: log-decays from `min_log_decay` to 0."""
        grid = 2.0 ** (math.ceil(math.log2(-min_log_decay * g.shape[-1])) - 24)
        coarse = jax.lax.stop_gradient(jnp.round(g / grid) * grid)
        return cls(jnp.cumsum(coarse, axis=-1), jnp.cumsum(g - coarse, axis=-1))

    @property
    def total(self) -> Float[Array, "... C"]:
        return self.coarse + self.fine

    def to_end(self) -> Float[Array, "... C"]:
        """The log-decay from behind each token to the chunk's end."""
        coarse, fine = (a[..., -1:] - a for a in self)
        return coarse + fine

    def between(self, seen: Bool[Array, "... C C"]) -> Float[Array, "... C C"]:
        """The log-decay from token j to token i, -inf where not seen[i, j].

        Masked before an exponential is taken: after it, a masked overflow gives NaN gradients. A
        token's own is the constant 0, whose gradients would cancel, and not to the last bit.
        """
        coarse, fine = (a[..., :, None] - a[..., None, :] for a in self)
        own = jnp.eye(seen.shape[-1], dtype=bool)
        return jnp.where(own, 0.0, jnp.where(seen, coarse + fine, -jnp.inf))


def running_sum(x: Float[Array, "... C K"]) -> Float[Array, "... C K"]:
    """The sum over the tokens of a chunk up to and with each, in fp32.

    A product with a triangle of ones: `jnp.cumsum` takes three times as long on a CPU.
    """
    C = x.shape[-2]
    return jnp.matmul(jnp.tril(jnp.ones((C, C), x.dtype)), x, precision="highest")


def starts_from(starts: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """How many documents start from each token on."""
    return jax.lax.cumsum(starts.astype(jnp.int32), axis=1, reverse=True)


def decays_to_end(
    g: Float[Array, "b T H K"], starts: Bool[Array, "B T"]
) -> tuple[Float[Array, "B T H K"], Float[Array, "B H K"]]:
    """What is left of each token at the end of a piece, and of the state that entered it.

    g: log-decays. Nothing is left of what a later document's start has cleared.
    """
    later = starts_from(starts)
    decay = jax.lax.cumsum(g, axis=1, reverse=True)
    after = (later - starts)[..., None, None]
    to_end = jnp.exp(decay - g) * (after == 0)
    return to_end, jnp.exp(decay[:, 0]) * (later[:, 0] == 0)[:, None, None]


def decay_from_last_start(
    g: Float[Array, "b T H K"], starts: Bool[Array, "B T"]
) -> Float[Array, "B H K"]:
    """What is left, at the end of a piece, of what its last document began from; 0 without one.

    g: log-decays.
    """
    last = starts & (starts_from(starts) == 1)
    decay = jax.lax.cumsum(g, axis=1, reverse=True)
    return (jnp.exp(decay) * last[..., None, None]).sum(axis=1)


def at_document_starts(
    x: Float[Array, "b N H C K"], starts: Bool[Array, "B N C"]
) -> Float[Array, "B N H C K"]:
    """x of the token that each token's document starts with, where it does so in the chunk."""
    index = jnp.where(starts, jnp.arange(starts.shape[-1]), 0)
    first = jax.lax.cummax(index, axis=2)
    return jnp.take_along_axis(x, first[:, :, None, :, None], axis=3)


def halving(chunk: int, length: int) -> int:
    """`chunk`, or the fewest tokens that hold a shorter `length` and can be halved to single ones.

    Raises ValueError for a chunk that is no power of two.
    """
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk must be a power of two, not {chunk}")
    return min(chunk, 1 << (length - 1).bit_length())


def in_slabs(
    run: Callable[[Any, Any], tuple[Shaped[Array, "B T ..."], Any]],
    tokens: Any,
    state: Any,
    slab: int = 512,
) -> tuple[Shaped[Array, "B T ..."], Any]:
    """`run(tokens, state) -> (outputs, state)` over slabs of time, in turn.

    What `run` makes on its way then fits in cache and never exceeds one slab, forward and
    backward (a slab is computed again from the state that entered it), so that time and memory
    per token do not grow with the length. `tokens` is a pytree of [B, T, ...] and [1, T, ...].
    """
    length = jax.tree.leaves(tokens)[0].shape[1]
    whole = length - length % slab
    if length <= slab:
        return run(tokens, state)

    def step(state, tokens):
        out, state = run(tokens, state)
        return state, out

    slabs = jax.tree.map(lambda x: jnp.moveaxis(split(x[:, :whole], slab), 1, 0), tokens)
    state, out = jax.lax.scan(jax.checkpoint(step), state, slabs)
    out = join(jnp.moveaxis(out, 0, 1), whole)
    if whole < length:
        rest, state = run(jax.tree.map(lambda x: x[:, whole:], tokens), state)
        out = jnp.concatenate([out, rest], axis=1)
    return out, state
