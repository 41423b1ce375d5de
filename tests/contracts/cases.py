"""What the laws are tried on: every entry of the tables, and settings that change the algorithm."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lcx import mixers
from lcx.checking import trial
from lcx.checking.trial import Trial, gradients_of
from lcx.layers import (
    CHANNELS,
    MLP,
    GeGLU,
    RMSNorm,
    RWKV6ChannelMix,
    RWKV7ChannelMix,
    RWKVChannelMix,
    SwiGLU,
)
from lcx.mixers import (
    GLA,
    MIXERS,
    RWKV5,
    RWKV6,
    DeltaNet,
    GatedDeltaNet,
    Lightning,
    LinearAttention,
    Mamba2,
    RetNet,
    SoftmaxAttention,
)
from lcx.positions import (
    NTK,
    POSITIONS,
    SCALINGS,
    ALiBi,
    DynamicNTK,
    DynamicYaRN,
    Llama3,
    LongRoPE,
    PositionInterpolation,
    RoPE,
    YaRN,
)
from lcx.sparsity import (
    SPARSITIES,
    Fixed,
    Full,
    SelfExtend,
    ShiftedGroups,
    Strided,
    TopBlocks,
    Window,
)
from lcx.types import Context, Dims, Params, Policy, Sublayer

WIDTH, ROWS, LENGTH = 32, 2, 150
"""Longer than any chunk, and a multiple of none."""

TURNED = RoPE(scaling=DynamicYaRN(original=64), fraction=0.5, interleaved=True)
"""All that RoPE can do; to a mixer, scalings differ in their numbers alone."""

SETTINGS: tuple[Sublayer, ...] = (
    SoftmaxAttention(kv_heads=2, qk_norm=RMSNorm()),
    SoftmaxAttention(kv_heads=1),
    SoftmaxAttention(heads=2, head_width=10, biases=("q", "k", "v", "out"), scale=0.2, gate=True),
    SoftmaxAttention(kv_heads=2, sink_logit=True, softcap=1.5),
    *(SoftmaxAttention(sparsity=Window(size)) for size in (1, 7, 1000)),
    SoftmaxAttention(sparsity=Window(7, sinks=3)),
    SoftmaxAttention(sparsity=Strided(8)),
    SoftmaxAttention(kv_heads=1, sparsity=ShiftedGroups(8)),
    SoftmaxAttention(kv_heads=2, sparsity=Fixed(8, summary=3)),
    SoftmaxAttention(kv_heads=2, sparsity=TopBlocks(8)),
    SoftmaxAttention(kv_heads=2, position=TURNED, sparsity=SelfExtend(8, group=4)),
    SoftmaxAttention(kv_heads=2, position=ALiBi(), softcap=1.5),
    SoftmaxAttention(kv_heads=1, position=ALiBi(), sparsity=Window(7, sinks=3)),
    LinearAttention(heads=2, position=RoPE()),
    LinearAttention(feature_map="softmax"),
    LinearAttention(feature_map="taylor"),
    Mamba2(head_width=16, state=8),
    Mamba2(head_width=16, state=8, groups=2),
    GatedDeltaNet(key_heads=2),
    RetNet(heads=2, expand=1),
)
EXAMPLES = {
    PositionInterpolation: PositionInterpolation(4.0),
    NTK: NTK(4.0),
    YaRN: YaRN(4.0, original=256),
    Llama3: Llama3(4.0, original=256),
    DynamicNTK: DynamicNTK(original=64),
    DynamicYaRN: DynamicYaRN(original=64),
    LongRoPE: LongRoPE((1.0, 1.1) * 4, (2.0, 3.0) * 4, original=64, factor=4.0),
}
"""Scalings that have no defaults."""

SCHEMES = (
    *(cls() for cls in POSITIONS.values()),
    *(RoPE(scaling=EXAMPLES.get(cls) or cls()) for cls in SCALINGS.values()),
    RoPE(fraction=0.5),
    RoPE(interleaved=True),
)
SUBLAYERS: tuple[Sublayer, ...] = (
    *(cls() for cls in MIXERS.values()),
    *(cls() for cls in CHANNELS.values()),
    *SETTINGS,
    *(SoftmaxAttention(sparsity=c()) for c in SPARSITIES.values() if c not in (Full, SelfExtend)),
    *(SoftmaxAttention(position=cls()) for cls in POSITIONS.values() if cls not in (RoPE, ALiBi)),
    SoftmaxAttention(position=TURNED),
)


class Case(NamedTuple):
    """Parameters away from their initial zeros and ones, an input and packed documents."""

    params: Params
    x: jax.Array
    packed: Context
    dims: Dims


@cache
def case(
    sublayer: Sublayer, compute: str = "float32", length: int = LENGTH, rows: int = ROWS
) -> Case:
    dims = Dims(WIDTH, layers=3, layer=1, policy=Policy(compute=compute))

    @jax.jit
    def params() -> Params:
        with nnx.use_eager_sharding(False):
            init = sublayer.init(dims, nnx.Rngs(1))
        noise = iter(jax.random.split(jax.random.key(0), 64))
        return jax.tree.map(
            lambda a: a + 0.2 * jax.random.normal(next(noise), a.shape, a.dtype), init
        )

    x = jax.random.normal(jax.random.key(1), (rows, length, WIDTH)).astype(compute)
    positions, segments = documents(rows, length)
    # of texts that are longer than they were in training, and not all the same
    lengths = jnp.where(segments == 2, 40, 130 + 30 * segments)
    return Case(params(), x, Context.of(positions, segments, lengths=lengths), dims)


documents = partial(trial.documents, offset=70_000)
"""The first of a row is the rest of a longer one."""


@cache
def whole(sublayer: Sublayer):
    """`gradients_of` one call without a state."""
    return gradients_of(lambda p, x, ctx: sublayer(p, x, ctx)[0])


@cache
def tried(sublayer: Sublayer) -> Trial:
    """For the laws of `lcx.checking`: what is compiled here already, and longer texts."""
    c = case(sublayer)
    made = Trial(name(sublayer), sublayer, c.dims, longest=2**17, most=LENGTH)
    made.params, made.x, made.packed = c.params, c.x, c.packed
    made.whole, made.evenly = whole(sublayer), None
    return made


def rms_error(got, expected) -> float:
    """Root mean square of the error, relative to that of what was expected."""
    a, b = (np.asarray(v, np.float64) for v in (got, expected))
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


def name(sublayer: Sublayer) -> str:
    from lcx.spec import describe

    return describe(sublayer)


# one of each algorithm, for what takes long
ALGORITHMS = tuple({(type(h), type(getattr(h, "sparsity", None))): h for h in SUBLAYERS}.values())
MIXER_CASES = tuple(h for h in SUBLAYERS if type(h).__module__.startswith(mixers.__name__))

# an entry of the tables whose operation another entry calls, too, with more that can go wrong
STOOD_FOR = {
    RetNet: Mamba2,
    Lightning: Mamba2,
    LinearAttention: Mamba2,
    GLA: RWKV6,
    RWKV5: RWKV6,
    DeltaNet: GatedDeltaNet,
    MLP: SwiGLU,
    GeGLU: SwiGLU,
    RWKV6ChannelMix: RWKVChannelMix,
    RWKV7ChannelMix: RWKVChannelMix,
    Strided: Window,
    ShiftedGroups: Window,
    SelfExtend: Window,
    Fixed: TopBlocks,
}
EVERY_DAY = tuple(
    h for h in ALGORITHMS if not STOOD_FOR.keys() & {type(h), type(getattr(h, "sparsity", None))}
)
"""What laws are tried on by default: a new mixer or sparsity is."""
