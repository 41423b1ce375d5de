"""The fused form of softmax attention, for NVIDIA GPUs: no score leaves the chip.

FlashAttention-2 (Dao, arXiv:2307.08691) in three Pallas kernels that Triton compiles. The forward
one walks the keys that a block of queries sees, with the running max and sum of
`lcx.ops.blockwise`. The backward pass recomputes the scores from the logsumexp: one kernel walks
the queries, of all heads of a KV head, that see a block of keys, another one walks the keys once
more. So every number has one writer, and results are the same in each run. Blocks that causality or
the window hide whole are not visited.

Scores and sums are fp32, and factors of products are in the arrays' dtype, as in `blockwise`. For
fp32 arrays products are as exact as `jax.default_matmul_precision` says.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lcx.ops.blockwise import EMPTY, cotangents_of
from lcx.ops.fused_kernels import (
    LOG2E,
    Blocks,
    Call,
    Inputs,
    forward,
    keys_backward,
    queries_backward,
)
from lcx.ops.tiles import MASK_VALUE, Index, Offset, Positions, Scoring, Segments
from lcx.parallel.mesh import ROWS, RULES
from lcx.parallel.seqpar import AXIS


class KernelBlocks(NamedTuple):
    """The blocks of the three kernels."""

    forward: Blocks
    keys_backward: Blocks
    queries_backward: Blocks


TUNED: dict[tuple[int, int], KernelBlocks] = {
    # A block's sums must fit in registers (255 a thread, 64k an SM) and what is in flight in shared
    # memory (227 kB), where wider heads leave room for fewer queries and keys.
    (2, 64): KernelBlocks(Blocks(128, 64, 4, 3), Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 3)),
    (2, 128): KernelBlocks(Blocks(128, 64, 8, 3), Blocks(32, 128, 8, 2), Blocks(128, 64, 8, 2)),
    (2, 256): KernelBlocks(Blocks(128, 32, 8, 2), Blocks(32, 32, 8, 1), Blocks(64, 32, 8, 2)),
    # Products of fp32 as they stand have no tensor cores, and hold their factors in registers.
    (4, 64): KernelBlocks(Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2), Blocks(64, 32, 8, 2)),
    (4, 128): KernelBlocks(Blocks(32, 16, 8, 2), Blocks(16, 32, 8, 1), Blocks(32, 32, 8, 2)),
    (4, 256): KernelBlocks(Blocks(32, 16, 8, 1), Blocks(16, 32, 8, 1), Blocks(32, 16, 8, 1)),
}
"""By bytes a number, and by the largest width of heads (K or V); for Hopper (H100)."""

WIDEST = max(width for _, width in TUNED)


def lacking() -> str | None:
    """Why `fused` cannot run on this machine; None: it can."""
    device = _device()
    if device.platform != "gpu":
        return f"it is for NVIDIA GPUs, and computing is on a {device.platform}"
    capability = str(getattr(device, "compute_capability", "")).split(".")[0]
    if not capability.isdigit() or int(capability) < 8:
        return f"it is for NVIDIA GPUs from Ampere on, not for {device.device_kind}"
    return None


def unfit(q: Array, k: Array, v: Array, offset: Offset) -> str | None:
    """Why `fused` does not take q [B T H K], k [B S G K] and v [B S G V]; None: it does."""
    if len({x.dtype for x in (q, k, v)}) > 1 or q.dtype not in (jnp.bfloat16, jnp.float32):
        kinds = ", ".join(str(x.dtype) for x in (q, k, v))
        return f"q, k and v must all be bfloat16 or all be float32, not {kinds}"
    if max(q.shape[-1], v.shape[-1]) > WIDEST:
        return f"heads may be {WIDEST} wide, not {max(q.shape[-1], v.shape[-1])}"
    if jnp.ndim(offset) > 0:
        return "queries must be consecutive (a single offset)"
    cut = _cut(q.shape[0], k.shape[2], q.shape[2] // k.shape[2])
    return cut if isinstance(cut, str) else None


def _device() -> jax.Device:
    """Where computing is by default: `jax.default_backend` does not heed `jax.default_device`."""
    set_by_user = jax.config.jax_default_device  # pyrefly: ignore[missing-attribute]
    if isinstance(set_by_user, str):
        return jax.local_devices(backend=set_by_user)[0]
    return set_by_user or jax.local_devices()[0]


def fused(
    q: Float[Array, "B T G R K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    offset: Index,
    scoring: Scoring,
    segments: Segments | None = None,
    positions: Positions | None = None,
    blocks: KernelBlocks | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T G R V"], Float[Array, "B T G R"]]:
    """Output in q's dtype and logsumexp, as `lcx.ops.attention.attention` has them.

    Where a mesh of several devices is set, each works on its own rows and heads. `unfit` says what
    it does not take. interpret: run the kernels in JAX's own operations, on any platform, slowly.
    """
    B, T, G, R, K = q.shape
    blocks = blocks or _tuned(max(K, v.shape[-1]), q.dtype.itemsize)
    blocks = KernelBlocks(*(_no_longer(each, T, k.shape[1]) for each in blocks))
    slopes = scoring.slopes and jnp.array(scoring.slopes, jnp.float32).reshape(G, R)
    run = partial(_attend, _Plan(scoring, blocks, interpret))
    cut = _cut(B, G, R)
    if isinstance(cut, str):
        raise ValueError(f"the fused form of attention cannot run here: {cut}")
    if cut is not None:
        queries = PartitionSpec(cut.rows, None, cut.groups, cut.heads)
        keys, tokens = PartitionSpec(cut.rows, None, cut.groups), PartitionSpec(cut.rows)
        marks = _Marks(tokens, tokens, PartitionSpec(cut.groups, cut.heads))
        # not check_vma: what is not cut gets the sum of the shards' gradients all the same
        run = jax.shard_map(
            run,
            in_specs=(PartitionSpec(), queries, keys, keys, marks),
            out_specs=(queries, PartitionSpec(cut.rows, cut.groups, cut.heads)),
            axis_names=set(cut.axes),
            check_vma=False,
        )
    o, lse = run(jnp.asarray(offset, jnp.int32), q, k, v, _Marks(segments, positions, slopes))
    lse = jnp.moveaxis(lse, -1, 1)
    return o, jnp.where(lse == EMPTY, MASK_VALUE, lse)


def _tuned(width: int, itemsize: int) -> KernelBlocks:
    return next(TUNED[of] for of in TUNED if of[0] == itemsize and width <= of[1])


def _no_longer(blocks: Blocks, T: int, S: int) -> Blocks:
    """Than the queries and the keys that there are, but for the 16 that a product needs."""
    queries, keys = (max(16, pl.next_power_of_2(n)) for n in (T, S))
    return blocks._replace(queries=min(blocks.queries, queries), keys=min(blocks.keys, keys))


class _Cut(NamedTuple):
    """Along which axes of the mesh a call is cut: a kernel is nothing that a compiler could cut."""

    axes: tuple[str, ...]
    """That the compiler would cut along, were it left to it."""
    rows: tuple[str, ...]
    groups: str | None
    """KV heads, with their query heads."""
    heads: str | None
    """The query heads of the only KV head, which every device has."""


def _cut(B: int, G: int, R: int) -> _Cut | str | None:
    """How the mesh that is set cuts rows and heads; or why it cannot; None: it does not."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in mesh.axis_names if name not in mesh.manual_axes)
    ways = {name: mesh.shape[name] for name in axes if mesh.shape[name] > 1}
    if not ways:
        return None
    model = RULES["heads"]
    if unknown := set(ways) - {*ROWS, AXIS, model}:
        return f"the mesh has the axes {', '.join(sorted(unknown))}, along which nothing is cut"
    rows = tuple(name for name in ROWS if name in ways)
    if B % math.prod(ways[name] for name in rows):
        rows = ()
    many = ways.get(model, 1)
    if G % many == 0:
        return _Cut(axes, rows, model if many > 1 else None, None)
    if G == 1 and R % many == 0:
        return _Cut(axes, rows, None, model)
    return f"the mesh cuts heads in {many}, which does not divide the {G} KV heads"


class _Plan(NamedTuple):
    """What is known of a call when it is traced."""

    scoring: Scoring
    blocks: KernelBlocks
    interpret: bool


class _Marks(NamedTuple):
    """Arrays without gradients."""

    segments: Any
    positions: Any
    slopes: Any
    """Of ALiBi, [G R]."""


# From here on lse is [B G R T], and EMPTY where there is no key, as in `blockwise`.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, offset: Any, q: Array, k: Array, v: Array, marks: _Marks) -> Any:
    return _attend_fwd(plan, offset, q, k, v, marks)[0]


def _attend_fwd(plan: _Plan, offset: Any, q: Array, k: Array, v: Array, marks: _Marks) -> Any:
    o, lse = _run(plan, forward, Inputs(offset, q, k, v, *marks))
    return (o, lse), (offset, q, k, v, marks, o, lse)


def _attend_bwd(plan: _Plan, saved: Any, cotangents: tuple[Array, Array]) -> Any:
    offset, q, k, v, marks, o, lse = saved
    do, delta = cotangents_of(o, *cotangents)
    inputs = Inputs(offset, q, k, v, *marks)._replace(do=do, lse=LOG2E * lse, delta=delta)
    (dq,) = _run(plan, queries_backward, inputs)
    # None: no gradients, or the float0 zeros that integer arguments ask for
    return None, dq, *_run(plan, keys_backward, inputs), None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _run(plan: _Plan, kernel: Callable, inputs: Inputs) -> tuple[Array, ...]:
    """A program for each block of queries and query head; of keys and KV head `keys_backward`."""
    (B, T, G, R, K), (_, S, _, V) = inputs.q.shape, inputs.v.shape
    blocks: Blocks = getattr(plan.blocks, kernel.__name__)
    by_keys = kernel is keys_backward
    # None: an axis of which the program is given one entry, and which its references do not have
    heads = R if by_keys and R > 1 else None

    def of(h: Index) -> tuple[Index, Index]:
        """The KV head of head h, and the place of its query head, or heads, among that one's."""
        return (h, 0) if by_keys else (lax.div(h, R), lax.rem(h, R))

    # Tokens whole: kernels cut them. A width is filled up to a power of 2, by what is never read.
    def queries(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, T, None, heads, width), lambda i, h, b: (b, 0, *of(h), 0))

    def keys(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, S, None, width), lambda i, h, b: (b, 0, of(h)[0], 0))

    wide_k, wide_v = (max(16, pl.next_power_of_2(width)) for width in (K, V))
    numbers = pl.BlockSpec((None, None, heads, T), lambda i, h, b: (b, *of(h), 0))
    tokens = tuple(pl.BlockSpec((None, n), lambda i, h, b: (b, 0)) for n in (T, S))
    specs = Inputs(
        offset=pl.BlockSpec((), lambda i, h, b: ()),
        q=queries(wide_k),
        k=keys(wide_k),
        v=keys(wide_v),
        segments=tokens,
        positions=tokens,
        slopes=pl.BlockSpec((None, heads), lambda i, h, b: of(h)),
        do=queries(wide_v),
        lse=numbers,
        delta=numbers,
    )
    given = zip(specs, inputs, strict=True)
    specs = Inputs(*(None if array is None else spec for spec, array in given))
    shape = jax.ShapeDtypeStruct
    like_q, like_k, like_v = (shape(x.shape, x.dtype) for x in (inputs.q, inputs.k, inputs.v))
    results: dict[Callable, tuple] = {
        forward: (
            (shape((B, T, G, R, V), inputs.q.dtype), queries(wide_v)),
            (shape((B, G, R, T), jnp.float32), numbers),
        ),
        queries_backward: ((like_q, queries(wide_k)),),
        keys_backward: ((like_k, keys(wide_k)), (like_v, keys(wide_v))),
    }
    shapes, places = zip(*results[kernel], strict=True)
    programs = pl.cdiv(S, blocks.keys) if by_keys else pl.cdiv(T, blocks.queries)
    return pl.pallas_call(
        partial(kernel, Call(plan.scoring, blocks, T, S, R, K, V)),
        grid=(programs, G if by_keys else G * R, B),
        in_specs=(specs,),
        out_specs=places,
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=plan.interpret,
        name=f"attention_{kernel.__name__}",
    )(inputs)
