"""Parameters: one line gives each its shape, first values, sharding and kind."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.nn.initializers import normal as normal
from jax.nn.initializers import zeros as zeros
from jaxtyping import Array, Float

from lcx.ops import sums
from lcx.types import Dims

Axes = tuple[str | None, str | None]
"""Logical names of a weight's input and output axes, which `lcx.parallel.mesh.RULES` maps."""

Kind = Literal["matrix", "table", "vector"]
"""What a parameter is to an optimizer, declared where it is made, in its metadata as `kind`.

    matrix   [..., in, out], maps features to features      decayed, and orthogonalised by Muon
    table    vectors by token or position, and the head     decayed
    vector   norms, biases, decays, mixes, convolutions     neither
"""


def uniform(bound: float) -> Initializer:
    """Values drawn evenly from [-bound, bound]."""

    def draw(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(
            key, shape, dtype, minval=-bound, maxval=bound, out_sharding=out_sharding
        )

    return draw


def orthogonal(gain: float = 1.0) -> Initializer:
    """`gain` times orthonormal rows or columns, whichever are fewer (Saxe et al. 2014)."""
    draw_one = jax.nn.initializers.orthogonal(gain)

    def draw(key, shape, dtype=jnp.float32, out_sharding=None):
        # One layer after the other. A QR factorisation of several matrices is cut over XLA's CPU
        # threads and waits there for its parts: as many at once as there are threads wait forever.
        one = jax.custom_batching.sequential_vmap(lambda key: draw_one(key, shape, dtype))
        return one(key)

    return draw


def step_bias(rngs: nnx.Rngs, heads: int) -> Float[Array, " H"]:
    """b such that softplus(b), a step of time, is log-uniform in [0.001, 0.1], fp32 (Mamba)."""
    step = jnp.exp(
        jax.random.uniform(rngs.params(), (heads,), minval=math.log(1e-3), maxval=math.log(1e-1))
    )
    return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus


class Linear(nnx.Linear):
    """x W, and a bias where there is one, as one product of matrices, whatever axes x has before.

    Over [B, T, D] as it is, a weight's gradient contracts over two axes, and XLA's CPU backend then
    copies the output's gradient, transposed, before it multiplies (decision 14).
    """

    def __call__(self, inputs: Float[Array, "*n D"], out_sharding=None) -> Float[Array, "*n F"]:
        rows = inputs.reshape(-1, inputs.shape[-1])
        rows, kernel = self.promote_dtype((rows, self.kernel[...]), dtype=self.dtype)
        out = self.dot_general(rows, kernel, (((1,), (0,)), ((), ())), out_sharding=out_sharding)
        if self.bias is not None:
            out += sums.spread(self.bias[...], out)
        return out.reshape(*inputs.shape[:-1], out.shape[-1])


def linear(
    dims: Dims,
    inputs: int,
    outputs: int,
    axes: Axes,
    rngs: nnx.Rngs,
    init: Initializer | None = None,
    kind: Kind = "matrix",
    bias: bool = False,
) -> Linear:
    """x W; W [inputs, outputs] drawn from N(0, 1/inputs) unless `init` says otherwise.

    bias: b [outputs] is added, 0 at first.
    """
    layer = Linear(
        inputs,
        outputs,
        use_bias=False,
        dtype=jnp.dtype(dims.policy.compute),
        param_dtype=jnp.dtype(dims.policy.params),
        kernel_init=init or normal(inputs**-0.5),
        kernel_metadata={"out_sharding": axes, "kind": kind},
        rngs=rngs,
    )
    if bias:
        layer.bias = vector(jnp.zeros(outputs, dims.policy.params))
    return layer


def residual(dims: Dims, inputs: int, axes: Axes, rngs: nnx.Rngs, bias: bool = False) -> Linear:
    """The projection back into the residual stream, N(0, 1 / (2 L inputs)).

    Smaller by sqrt(2L), so that the sum over L layers of two sublayers each keeps its variance
    (GPT-2, Radford et al. 2019, section 2.3).
    """
    init = normal((2 * dims.layers * inputs) ** -0.5)
    return linear(dims, inputs, dims.model, axes, rngs, init, bias=bias)


def matrix(value: Float[Array, "... inputs outputs"]) -> nnx.Param:
    """A batch of matrices that no `linear` fits."""
    return nnx.Param(value, kind="matrix")


def vector(value: Float[Array, "..."], rate: float = 1.0) -> nnx.Param:
    """A parameter that is no weight of a projection; `rate` multiplies its learning rate."""
    return nnx.Param(value, kind="vector", rate=rate)


def split_heads(x: Float[Array, "B T HK"], heads: int) -> Float[Array, "B T H K"]:
    """[B, T, H * K] -> [B, T, H, K]."""
    return x.reshape(*x.shape[:2], heads, -1)


def merge_heads(x: Float[Array, "B T H K"]) -> Float[Array, "B T HK"]:
    """[B, T, H, K] -> [B, T, H * K]."""
    return x.reshape(*x.shape[:2], -1)


def head_width(name: str, dims: Dims, heads: int) -> int:
    """D / heads. Raises ValueError with the nearest head counts that do divide."""
    if heads >= 1 and dims.model % heads == 0:
        return dims.model // heads
    raise ValueError(
        f"{name}: {heads} heads do not divide the model width {dims.model}; "
        f"nearest that do: {nearest_divisors(dims.model, heads)}"
    )


def nearest_divisors(size: int, wanted: int) -> str:
    """For messages: the two numbers next to `wanted` that divide `size`."""
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    return " or ".join(map(str, sorted(sorted(divisors, key=lambda n: abs(n - wanted))[:2])))
