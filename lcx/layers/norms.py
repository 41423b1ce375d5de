"""Norms: with parameters, as parts of a model; and without, as functions."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.ops import sums
from lcx.ops.recomputing import recomputed
from lcx.types import Dims


class _RMSNorm(nnx.RMSNorm):
    def __call__(self, x, mask=None):
        return recomputed(super().__call__)(x)


class _LayerNorm(nnx.LayerNorm):
    def __call__(self, x, mask=None):
        return recomputed(super().__call__)(x)


@dataclass(frozen=True)
class RMSNorm:
    """x / rms(x) * scale, statistics in fp32 (Zhang and Sennrich 2019)."""

    eps: float = 1e-6

    def init(self, dims: Dims, rngs: nnx.Rngs) -> nnx.Module:
        return _RMSNorm(
            dims.model,
            epsilon=self.eps,
            dtype=jnp.dtype(dims.policy.compute),
            param_dtype=jnp.dtype(dims.policy.params),
            scale_metadata={"kind": "vector"},
            rngs=rngs,
        )


class _ZeroCentred(nnx.RMSNorm):
    def __call__(self, x, mask=None):
        return recomputed(self._normed)(x)

    def _normed(self, x):
        normed = rms_normalise(x.astype(jnp.float32), self.epsilon)
        weight: Any = self.scale
        return (normed * (1 + sums.spread(weight[...], normed))).astype(self.dtype)


@dataclass(frozen=True)
class ZeroCentredRMSNorm:
    """x / rms(x) * (1 + scale), all of it in fp32: a scale that decays goes to 1 (Gemma, 2024)."""

    eps: float = 1e-6

    def init(self, dims: Dims, rngs: nnx.Rngs) -> nnx.Module:
        return _ZeroCentred(
            dims.model,
            epsilon=self.eps,
            dtype=jnp.dtype(dims.policy.compute),
            param_dtype=jnp.dtype(dims.policy.params),
            scale_init=nnx.initializers.zeros,
            scale_metadata={"kind": "vector"},
            rngs=rngs,
        )


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / std * scale + bias, statistics in fp32 (Ba et al. 2016). RWKV's norm."""

    eps: float = 1e-5
    bias: bool = True
    """False: only scaled, as in MPT."""

    def init(self, dims: Dims, rngs: nnx.Rngs) -> nnx.Module:
        return _LayerNorm(
            dims.model,
            epsilon=self.eps,
            dtype=jnp.dtype(dims.policy.compute),
            param_dtype=jnp.dtype(dims.policy.params),
            use_bias=self.bias,
            use_fast_variance=False,
            scale_metadata={"kind": "vector"},
            bias_metadata={"kind": "vector"},
            rngs=rngs,
        )


Norm = RMSNorm | ZeroCentredRMSNorm | LayerNorm


def rms_normalise(x: Float[Array, "... V"], eps: float = 1e-6) -> Float[Array, "... V"]:
    """x / rms(x) along the last axis, without parameters; statistics in fp32."""

    @recomputed
    def normalised(x):
        square = jnp.square(x.astype(jnp.float32)).mean(axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(square + eps)).astype(x.dtype)

    return normalised(x)


def l2_normalise(x: Float[Array, "... K"], eps: float = 1e-6) -> Float[Array, "... K"]:
    """x / |x| along the last axis, |x|^2 in fp32 with eps added."""

    @recomputed
    def normalised(x):
        square = jnp.square(x.astype(jnp.float32)).sum(axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(square + eps)).astype(x.dtype)

    return normalised(x)


def standardise(x: Float[Array, "... V"], eps: float) -> Float[Array, "... V"]:
    """(x - mean) / std along the last axis, without parameters; statistics in fp32.

    Over [B T H V] it is the group norm of RWKV, one group a head.
    """

    @recomputed
    def standardised(x):
        centred = x.astype(jnp.float32) - x.mean(axis=-1, keepdims=True, dtype=jnp.float32)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)

    return standardised(x)


NORMS: dict[str, type] = {c.__name__: c for c in (RMSNorm, ZeroCentredRMSNorm, LayerNorm)}
