"""The inverse of a unit lower triangular matrix: what the delta rule has to solve in each chunk."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def inverse(a: Float[Array, "... C C"]) -> Float[Array, "... C C"]:
    """(I - a)^-1 for strictly lower triangular a, fp32; C a power of two.

    By halves: with blocks P, R, Q of I - a, the inverse has P^-1 and Q^-1 on the diagonal and
    -Q^-1 R P^-1 below. As exact as forward substitution, in log2(C) steps of matrix products; the
    product (I + a)(I + a^2)(I + a^4)... is as short and loses all digits when keys resemble one
    another. What stands on or above the diagonal of `a` is not read.
    """
    return _by_halves(a)


def _by_halves(a):
    C = a.shape[-1]
    if C == 1:
        return jnp.ones_like(a)
    half = C // 2
    # both diagonal blocks at once, as a longer batch
    blocks = jnp.stack([a[..., :half, :half], a[..., half:, half:]], axis=-3)
    within = _by_halves(blocks.reshape(-1, half, half)).reshape(blocks.shape)
    first, second = within[..., 0, :, :], within[..., 1, :, :]
    below = a[..., half:, :half]
    if half > 1:
        below = _product(_product(second, below), first)
    above = jnp.concatenate([first, jnp.zeros_like(below)], axis=-1)
    return jnp.concatenate([above, jnp.concatenate([below, second], axis=-1)], axis=-2)


def _product(x, y):
    """x @ y; small ones written as sums, since a call for each costs more than its work (CPU)."""
    if x.shape[-1] > 4:
        return x @ y
    return (x[..., :, :, None] * y[..., None, :, :]).sum(axis=-2)


def _forward(a):
    x = _by_halves(a)
    return x, x


def _backward(x, dx):
    return (jnp.tril(x.mT @ dx @ x.mT, -1),)


inverse.defvjp(_forward, _backward)
