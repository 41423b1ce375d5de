"""The language model: embed -> (pattern of blocks x repeats) -> norm -> head."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jaxtyping import Array, Float, Int, Key

from lcx import seqpar
from lcx.dense import linear
from lcx.layers import Norm, RMSNorm, SwiGLU
from lcx.mesh import by_rows
from lcx.mixers import SoftmaxAttention
from lcx.positions import Learned
from lcx.seqpar import Shards
from lcx.types import Context, Dims, Half, Params, Policy, SharingHalf, State

WRITTEN_OUT = 4
"""Training writes so many repeats of the pattern out, and runs more of them as a loop.

A loop compiles the pattern once, and copies what the backward pass needs of each repeat into one
array and out of it again, which takes up to a sixth of a step on a CPU (decision 6).
"""


@dataclass(frozen=True)
class Block:
    """Two halves, each behind a norm and a residual: a token mixer, then a channel mixer."""

    mixer: Half = SoftmaxAttention()
    channel: Half = SwiGLU()
    norm: Norm = RMSNorm()

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        return nnx.Dict(
            mixer_norm=self.norm.init(dims, rngs),
            mixer=self.mixer.init(dims, rngs),
            channel_norm=self.norm.init(dims, rngs),
            channel=self.channel.init(dims, rngs),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        return {
            "mixer": self.mixer.init_state(dims, batch, capacity),
            "channel": self.channel.init_state(dims, batch, capacity),
        }

    def init_shared(self, x: Float[Array, "B T D"]) -> dict[str, Any]:
        """What the first layers of each kind of half that shares are given, by its name."""
        halves = (self.mixer, self.channel)
        return {type(h).__name__: h.init_shared(x) for h in halves if isinstance(h, SharingHalf)}

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        ctx: Context,
        state: State | None,
        shared: dict[str, Any],
    ) -> tuple[Float[Array, "B T D"], State | None, dict[str, Any]]:
        """The residual stream after this block, its state, and what goes on to later blocks."""
        after, shared = {}, dict(shared)
        for place in ("mixer", "channel"):
            half, name = getattr(self, place), type(getattr(self, place)).__name__
            args = params[place], params[f"{place}_norm"](x), ctx, state and state[place]
            if isinstance(half, SharingHalf):
                y, after[place], shared[name] = half.share(*args, shared[name])
            else:
                y, after[place] = half(*args)
            x = x + y
        return x, None if state is None else after, shared


@dataclass(frozen=True)
class LM:
    """A causal language model: `repeats` times a `pattern` of blocks, between embedding and head.

    Every array lives in the tree that `init` makes; this record holds none. The layers of one
    place in the pattern are stacked on a leading axis and run by `jax.lax.scan`, which writes few
    of them out.
    """

    vocab: int = 257
    """Number of token ids: 257 for bytes and the document mark."""
    width: int = 128
    """D."""
    pattern: tuple[Block, ...] = (Block(),)
    repeats: int = 4
    tied: bool = True
    """The head is the embedding's transpose."""
    norm: Norm = RMSNorm()
    """Before the head."""
    embed_norm: Norm | None = None
    """After the embedding; RWKV has one."""
    positions: Learned | None = None
    """Vectors of positions, added to the embedding; beside them mixers take `NoPE()`."""
    policy: Policy = Policy()
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass computes again: nothing; each pattern from its input; or all but
    the results of matrix products with weights."""

    def __post_init__(self):
        for name in ("vocab", "width", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"LM: {name} must be at least 1, not {getattr(self, name)}")
        if not self.pattern:
            raise ValueError("LM: the pattern is empty; it needs at least one Block")

    @property
    def dims(self) -> Dims:
        """What the layers are told; each is told its own index besides."""
        return Dims(self.width, layers=len(self.pattern) * self.repeats, policy=self.policy)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters. Raises ValueError where a layer does not fit the width."""
        dims, places = self.dims, len(self.pattern)
        rngs = nnx.Rngs(key)

        def layers(place: int) -> Params:
            def layer(key, repeat):
                there = replace(dims, layer=repeat * places + place)
                return self.pattern[place].init(there, nnx.Rngs(key))

            return jax.vmap(layer)(jax.random.split(rngs(), self.repeats), jnp.arange(self.repeats))

        with nnx.use_eager_sharding(False):
            params = nnx.Dict(
                embed=nnx.Embed(
                    self.vocab,
                    self.width,
                    dtype=jnp.dtype(self.policy.compute),
                    param_dtype=jnp.dtype(self.policy.params),
                    embedding_init=normal(0.02),
                    embedding_metadata={"out_sharding": ("vocab", "embed"), "kind": "table"},
                    rngs=rngs,
                ),
                blocks=nnx.List([layers(place) for place in range(places)]),
                norm=self.norm.init(dims, rngs),
            )
            if self.embed_norm:
                params.embed_norm = self.embed_norm.init(dims, rngs)
            if self.positions:
                params.positions = self.positions.init(dims, rngs)
            if not self.tied:
                axes = ("embed", "vocab")
                params.head = linear(dims, self.width, self.vocab, axes, rngs, kind="table")
        return params

    def init_state(
        self, batch: int, capacity: int, lengths: Int[Array, " B"] | None = None
    ) -> State:
        """The state before the first token of texts of at most `capacity` tokens.

        lengths: how long each text will have become at its end, for position schemes that depend on
        it; None: `capacity`.
        """
        if lengths is None:
            lengths = jnp.full(batch, capacity, jnp.int32)
        if jnp.shape(lengths) != (batch,):
            raise ValueError(f"lengths must be of shape {(batch,)}, not {jnp.shape(lengths)}")
        return {
            "length": lengths,
            "position": jnp.zeros(batch, jnp.int32),
            "segment": jnp.full(batch, -1, jnp.int32),
            "layers": [
                block.init_state(self.dims, batch, capacity)
                for _ in range(self.repeats)
                for block in self.pattern
            ],
        }

    def __call__(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        state: State | None = None,
        lengths: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B T vocab"], State | None]:
        """Logits of the next token (fp32), and the state after the last. See `hidden`."""
        x, state = self.hidden(params, tokens, positions, segments, state, lengths)
        return self.logits(params, x), state

    def hidden(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        state: State | None = None,
        lengths: Int[Array, " B"] | None = None,
        shards: Shards | None = None,
    ) -> tuple[Float[Array, "B T D"], State | None]:
        """What the head reads, and the state after the last token (None without a state).

        positions: of the tokens in their documents; None: counted on from the state, or from 0.
        segments: which document of its row each token belongs to, 0 for padding; None: each row
        is one document. With a state the tokens continue the text that made it.
        lengths: of the texts, where a position scheme depends on it; None: T, or the state's.
        shards: the T tokens are one device's piece of longer texts (`lcx.seqpar.sharded`).
        """
        batch, length = tokens.shape
        if positions is None:
            first = jnp.zeros(batch, jnp.int32) if state is None else state["position"]
            first = first + seqpar.index(shards) * length
            positions = first[:, None] + jnp.arange(length, dtype=jnp.int32)
        if lengths is None:
            whole = jnp.full(batch, seqpar.length(length, shards), jnp.int32)
            lengths = whole if state is None else state["length"]
        ctx = Context.of(
            positions,
            segments,
            None if state is None else state["segment"],
            jnp.broadcast_to(lengths[:, None], tokens.shape),
            shards,
        )
        table = seqpar.uncut(params.embed.embedding[...], shards)
        x = by_rows(table[tokens].astype(self.policy.compute))
        if self.positions:
            x += self.positions(params.positions, positions).astype(x.dtype)
        if self.embed_norm:
            x = params.embed_norm(x)
        if state is None:
            return params.norm(self._train_layers(params.blocks, x, ctx)), None
        x, layers = self._stream_layers(params.blocks, x, ctx, state["layers"])
        segment = jnp.zeros_like(state["segment"]) if segments is None else segments[:, -1]
        after = {
            "length": lengths,
            "position": seqpar.last(positions[:, -1] + 1, shards),
            "segment": seqpar.last(segment, shards),
            "layers": layers,
        }
        return params.norm(x), after

    def _train_layers(
        self, params: nnx.List, x: Float[Array, "B T D"], ctx: Context
    ) -> Float[Array, "B T D"]:
        """The pattern, `repeats` times: written out, or one compiled loop."""

        def pattern(carry, params):
            x, shared = carry
            for place, block in enumerate(self.pattern):
                x, _, shared = block(params[place], x, ctx, None, shared)
                x = by_rows(x)
            return (x, shared), None

        match self.remat:
            case "none":
                pass
            case "block":
                pattern = jax.checkpoint(pattern)
            case "dots":
                policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
                pattern = jax.checkpoint(pattern, policy=policy)
        together = self.repeats if self.repeats <= WRITTEN_OUT else 1
        (x, _), _ = jax.lax.scan(pattern, (x, self._init_shared(x)), params, unroll=together)
        return x

    def _stream_layers(
        self, params: nnx.List, x: Float[Array, "B T D"], ctx: Context, state: list[State]
    ) -> tuple[Float[Array, "B T D"], list[State | None]]:
        """The layers one by one: a loop would copy every layer's state, a key cache whole."""
        after, shared = [], self._init_shared(x)
        for layer, before in enumerate(state):
            repeat, place = divmod(layer, len(self.pattern))
            own = jax.tree.map(lambda a, r=repeat: a[r], params[place])
            x, new, shared = self.pattern[place](own, x, ctx, before, shared)
            after.append(new)
        return x, after

    def _init_shared(self, x: Float[Array, "B T D"]) -> dict[str, Any]:
        return {k: v for block in self.pattern for k, v in block.init_shared(x).items()}

    def logits(self, params: Params, x: Float[Array, "... D"]) -> Float[Array, "... vocab"]:
        """The head, in fp32."""
        head = params.embed.embedding[...].T if self.tied else params.head.kernel[...]
        rows = x.reshape(-1, x.shape[-1])  # one product of matrices, as in `lcx.dense`
        out = jnp.matmul(rows, head.astype(x.dtype), preferred_element_type=jnp.float32)
        return out.reshape(*x.shape[:-1], out.shape[-1])


def count_parameters(model: LM) -> int:
    """The number of parameters, without making any."""
    return sum(math.prod(variable.shape) for variable in parameters(model).values())


def parameters(model: LM) -> dict[str, nnx.Variable]:
    """{path: abstract variable} of the parameters, without making any."""
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    found = jax.tree_util.tree_leaves_with_path(
        abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    return {jax.tree_util.keystr(p, simple=True, separator="."): v for p, v in found}
