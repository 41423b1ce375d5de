"""A short causal convolution of each channel along time.

    y_t = bias + sum_{i < W} weight_i x_{t - W + 1 + i}

Taps that reach before the document's first token read zero. The state is the last W - 1 inputs.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lcx.ops.recomputing import recomputed
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards


def short_conv(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, " D"] | None = None,
    *,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B W-1 D"] | None = None,
    shards: Shards | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W-1 D"]]:
    """Outputs in the dtype of x, summed in fp32; and the last W - 1 inputs of the document.

    weight[W - 1] multiplies the current token. No state: zeros before the first token.
    """
    kernel_size, length = weight.shape[0], x.shape[1]
    before = (
        jnp.zeros((x.shape[0], kernel_size - 1, x.shape[2]), x.dtype) if state is None else state
    )
    inputs = jnp.concatenate([seqpar.halo(x, before.astype(x.dtype), shards), x], axis=1)
    document = None
    if starts is not None:
        # a state holds one document alone
        none = jnp.zeros((starts.shape[0], kernel_size - 1), bool)
        all_starts = jnp.concatenate([seqpar.halo(starts, none, shards), starts], axis=1)
        document = jnp.cumsum(all_starts, axis=1)
    y = recomputed(_taps)(inputs, weight, bias, document)
    last = inputs[:, length:]
    if document is not None:
        last = jnp.where((document[:, length:] == document[:, -1:])[..., None], last, 0)
    return y, seqpar.last(last, shards)


def _taps(
    inputs: Float[Array, "B I D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, " D"] | None,
    document: Int[Array, "B I"] | None,
) -> Float[Array, "B T D"]:
    """The sum of I = T + W - 1 inputs over the taps."""
    kernel_size = weight.shape[0]
    length = inputs.shape[1] - kernel_size + 1
    y = jnp.zeros((), jnp.float32) if bias is None else bias.astype(jnp.float32)
    for i in range(kernel_size):
        tap = inputs[:, i : i + length].astype(jnp.float32)
        if document is not None:
            same = document[:, i : i + length] == document[:, kernel_size - 1 :]
            tap = jnp.where(same[..., None], tap, 0.0)
        y = y + weight[i].astype(jnp.float32) * tap
    return y.astype(inputs.dtype)
