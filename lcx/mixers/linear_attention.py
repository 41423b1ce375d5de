"""Linear attention: a positive feature map in place of the softmax."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from lcx.dense import head_width, linear, merge_heads, residual, split_heads
from lcx.ops.feature_maps import FEATURE_MAPS, FeatureMap, features
from lcx.ops.linear_attention import linear_attention
from lcx.positions import NoPE, PositionScheme, RoPE, encodes_only
from lcx.types import Context, Dims, Output, Params, State, absent_fields


class LinearAttentionState(NamedTuple):
    """Of each head, the sums over the past of keys times values, and of keys."""

    S: Float32[Array, "B H K V"]
    normaliser: Float32[Array, "B H K 1"]


@dataclass(frozen=True)
class LinearAttention:
    """Linear attention, normalised: phi(q) S / phi(q) z (Katharopoulos et al. 2020).

    State: per head, S, the sum of phi(k) v^T, and the normaliser z, that of phi(k). Fixed size.
    A rotary scheme turns phi(q) and phi(k) above the fraction's bar and leaves the normaliser
    alone, so that it stays positive (Su et al. 2021, equation 19).
    """

    heads: int = 4
    position: PositionScheme = NoPE()
    feature_map: FeatureMap = "elu"
    """phi: elu, relu, softmax (Hedgehog) or taylor (Based)."""

    def _widths(self, dims: Dims) -> tuple[int, int]:
        width = head_width("LinearAttention", dims, self.heads)
        return features(self.feature_map, width), width

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        self._check_position(self._widths(dims)[0])
        return nnx.Dict(
            q=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            k=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            v=linear(dims, dims.model, dims.model, ("embed", "heads"), rngs),
            out=residual(dims, dims.model, ("heads", "embed"), rngs),
        )

    def _check_position(self, width: int) -> None:
        encodes_only("LinearAttention", self.position)
        self.position.check(width)
        if isinstance(self.position, RoPE):
            magnitude = self.position.frequencies(self.position.rotary_width(width), 2**30)[1]
            if magnitude != 1:
                raise ValueError(
                    f"LinearAttention: {type(self.position.scaling).__name__} multiplies queries "
                    "and keys, and so the whole output, since the normaliser is not rotated; give "
                    "it an attention_factor of 1.0, or take another scaling"
                )

    @property
    def learned_state(self) -> str:
        return "S"

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        keys, values = self._widths(dims)
        return LinearAttentionState(
            S=jnp.zeros((batch, self.heads, keys, values), jnp.float32),
            normaliser=jnp.zeros((batch, self.heads, keys, 1), jnp.float32),
        )

    def head_count(self, dims: Dims) -> int:
        return self.heads

    def mixing_flops(self, dims: Dims, length: int) -> float:
        keys, values = self._widths(dims)
        return 4.0 * self.heads * keys * (values + 1)  # add, read

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output:
        q, k, v = (split_heads(params[n](x), self.heads) for n in "qkv")
        q, k = (FEATURE_MAPS[self.feature_map](a) for a in (q, k))
        before = absent_fields(state, LinearAttentionState)
        begin = absent_fields(ctx.initial, LinearAttentionState)
        one = jnp.ones_like(v[..., :1])
        z, normaliser = linear_attention(
            q,
            k,
            one,
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.normaliser,
            initial=begin.normaliser,
            kernels=ctx.kernels,
        )
        q, k = self.position(q, k, ctx)
        o, S = linear_attention(
            q,
            k,
            v,
            starts=ctx.starts,
            shards=ctx.shards,
            state=before.S,
            initial=begin.S,
            kernels=ctx.kernels,
        )
        y = params.out(merge_heads(o / (z + 1e-6)))
        return Output(y, state and LinearAttentionState(S, normaliser))
