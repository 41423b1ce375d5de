"""A short causal convolution of each channel along time.

    y_t = bias + sum_{i < W} weight_i x_{t - W + 1 + i}

Taps that reach before the document's first token read `initial`, or zero. The state is the last
W - 1 inputs.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lcx.ops import sums
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
    initial: Float[Array, "1 W-1 D"] | None = None,
    shards: Shards | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B W-1 D"]]:
    """Outputs in the dtype of x, summed in fp32; and the last W - 1 inputs of the document.

    weight[W - 1] multiplies the current token. No state: zeros before the first token. initial: the
    inputs before a document's first.
    """
    kernel_size, length = weight.shape[0], x.shape[1]
    before = (
        jnp.zeros((x.shape[0], kernel_size - 1, x.shape[2]), x.dtype) if state is None else state
    )
    inputs = jnp.concatenate([seqpar.halo(x, before.astype(x.dtype), shards), x], axis=1)
    index, first = jnp.arange(inputs.shape[1], dtype=jnp.int32), None
    if starts is not None:
        # a state holds one document alone
        none = jnp.zeros((starts.shape[0], kernel_size - 1), bool)
        all_starts = jnp.concatenate([seqpar.halo(starts, none, shards), starts], axis=1)
        first = lax.cummax(jnp.where(all_starts, index, 0), axis=1)
    if initial is not None:
        initial = initial.astype(x.dtype)
    y = recomputed(_taps)(inputs, weight, bias, first, initial)
    last = inputs[:, length:]
    if first is not None:
        last = _of_document(last, index[length:], first[:, -1:], initial)
    return y, seqpar.last(last, shards)


def _taps(
    inputs: Float[Array, "B I D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, " D"] | None,
    first: Int[Array, "B I"] | None,
    initial: Float[Array, "1 W-1 D"] | None,
) -> Float[Array, "B T D"]:
    """The sum of I = T + W - 1 inputs over the taps. first: the index of each document's first."""
    kernel_size = weight.shape[0]
    length = inputs.shape[1] - kernel_size + 1
    y = jnp.zeros((), jnp.float32) if bias is None else bias.astype(jnp.float32)
    for i in range(kernel_size):
        tap = inputs[:, i : i + length]
        if first is not None and i < kernel_size - 1:
            index = jnp.arange(i, i + length)
            tap = _of_document(tap, index, first[:, kernel_size - 1 :], initial)
        y = y + weight[i].astype(jnp.float32) * tap.astype(jnp.float32)
    return y.astype(inputs.dtype)


def _of_document(
    inputs: Float[Array, "B n D"],
    index: Int[Array, " n"],
    first: Int[Array, "B #n"],
    initial: Float[Array, "1 before D"] | None,
) -> Float[Array, "B n D"]:
    """Inputs at these indices, of documents that begin at `first`; and what stands before them."""
    past = index - first  # negative: so many before the first
    found = jnp.zeros((), inputs.dtype)
    if initial is not None and initial.shape[1]:
        rows = initial.shape[1]
        found = sums.rows(initial[0], jnp.clip(rows + past, 0, rows - 1))
    return jnp.where((past >= 0)[..., None], inputs, found)
