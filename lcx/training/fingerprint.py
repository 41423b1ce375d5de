"""A fingerprint of parameters, wherever they lie: what results and later trainings belong to."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from lcx.cache import Digest
from lcx.types import Params


def fingerprint(params: Params) -> str:
    """Equal for two trees whose paths, shapes and bits are; of others, equal by chance in 2^32.

    The same on every mesh: each device adds up its part, modulo 2^32. States that documents begin
    from are left out: they are computed, and what they are computed from is in the tree.
    """
    digest = Digest()
    for (path, leaf), total in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(_sums(params)), strict=True
    ):
        parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        if any(part.endswith("_initial") for part in parts):  # computed
            continue
        digest.add(jax.tree_util.keystr(path), str(leaf.dtype), str(leaf.shape))
        digest.add(str(int(np.asarray(total))))
    return str(digest)


@jax.jit
def _sums(params: Params) -> Params:
    return jax.tree.map(_sum, params)


def _sum(leaf: Array) -> UInt32[Array, ""]:
    """Each number's bits, mixed with its place, so that two which change places are noticed."""
    kinds = {2: jnp.uint16, 4: jnp.uint32}
    bits = jax.lax.bitcast_convert_type(leaf, kinds[leaf.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.full(leaf.shape, 0x9E3779B9, jnp.uint32)
    for axis in range(leaf.ndim):
        place = place * jnp.uint32(0x01000193)
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed = (bits ^ place) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
