"""The language model: embed -> (pattern of blocks x repeats) -> norm -> head."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jaxtyping import Array, Float, Int, Key

from lcx.block import Block, BlockState
from lcx.dense import linear
from lcx.kernels import Kernels
from lcx.layers import Norm, RMSNorm
from lcx.layers.noise import noisy
from lcx.ops import sums
from lcx.parallel import seqpar
from lcx.parallel.mesh import by_rows
from lcx.parallel.seqpar import Shards
from lcx.positions import Learned
from lcx.types import (
    Aux,
    Batch,
    Context,
    Dims,
    Handed,
    Output,
    Params,
    Policy,
    absent_fields,
    joined,
)

BYTES = 257
"""Token ids of text as bytes: these, and BOS."""

WRITTEN_OUT = 4
"""Training writes so many repeats of the pattern out, and runs more of them as a loop.

A loop compiles the pattern once, and copies what the backward pass needs of each repeat into one
array and out of it again, which takes up to a sixth of a step on a CPU (decision 6).
"""


class ModelState(NamedTuple):
    """What a model remembers of the texts that it reads."""

    length: Int[Array, " B"]
    """How long each text will have become at its end."""
    position: Int[Array, " B"]
    """Of the next token."""
    segment: Int[Array, " B"]
    """The document of the last token; -1 before the first."""
    layers: list[BlockState]


BEGIN = "begin"
"""What fine-tuning puts into a tree whose documents begin from a state (`lcx.adapters`): the
position of a document's first token. The state is in the blocks."""


class PerToken(NamedTuple):
    """Parameters as a loop over single tokens reads them; made once, before the loop.

    In it a cut or a transpose would be made again for every token, at the price of the product.
    """

    layers: list[Params]
    """Each layer's own."""
    head: Float[Array, "D vocab"]


def _precise(method: Callable) -> Callable:
    """A method of LM whose products are as its policy says."""

    @wraps(method)
    def precise(self, *args: Any, **named: Any) -> Any:
        with self.policy.precise():
            return method(self, *args, **named)

    return precise


@dataclass(frozen=True)
class LM:
    """A causal language model: `repeats` times a `pattern` of blocks, between embedding and head.

    Every array lives in the tree that `init` makes; this record holds none. The layers of one
    place in the pattern are stacked on a leading axis and run by `jax.lax.scan`, which writes few
    of them out.
    """

    vocab: int | None = None
    """Number of token ids; None: as many as the experiment's tokenizer has, or `BYTES` without one.
    Those beyond the tokenizer's, with which published tables are padded, are never read or asked
    for, and are in every softmax, as transformers has them."""
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
    embed_factor: float | None = None
    """What the embedding is multiplied by, in its own dtype; Gemma: the square root of the width.
    A tied head is not."""
    embed_noise: float | None = None
    """In training, uniform noise in [-1, 1) times embed_noise / sqrt(L D) is added to what the
    table gives for each token of a document of L tokens; 5 to 15 (NEFTune, Jain et al. 2023)."""
    softcap: float | None = None
    """A bound on the logits: softcap * tanh(logit / softcap) (Gemma 2)."""
    positions: Learned | None = None
    """Vectors of positions, added to the embedding; beside them mixers take `NoPE()`."""
    policy: Policy = Policy()
    remat: Literal["none", "block", "dots"] = "none"
    """What the backward pass computes again: nothing; each pattern from its input; or all but
    the results of matrix products with weights."""

    def __post_init__(self):
        for name in ("vocab", "width", "repeats"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"LM: {name} must be at least 1, not {size}")
        for name in ("embed_factor", "embed_noise", "softcap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"LM: {name} must be positive, not {value}")
        if not self.pattern:
            raise ValueError("LM: the pattern is empty; it needs at least one Block")

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return BYTES if self.vocab is None else self.vocab

    @property
    def dims(self) -> Dims:
        """What the layers are given; each is given its own index besides."""
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
                    self.vocabulary,
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
                params.head = linear(dims, self.width, self.vocabulary, axes, rngs, kind="table")
        return params

    def init_state(
        self, batch: int, capacity: int, lengths: Int[Array, " B"] | None = None
    ) -> ModelState:
        """The state before the first token of texts of at most `capacity` tokens.

        lengths: how long each text will have become at its end, for position schemes that depend on
        it; None: `capacity`.
        """
        if lengths is None:
            lengths = jnp.full(batch, capacity, jnp.int32)
        if jnp.shape(lengths) != (batch,):
            raise ValueError(f"lengths must be of shape {(batch,)}, not {jnp.shape(lengths)}")
        return ModelState(
            length=lengths,
            position=jnp.zeros(batch, jnp.int32),
            segment=jnp.full(batch, -1, jnp.int32),
            layers=[
                block.init_state(self.dims, batch, capacity)
                for _ in range(self.repeats)
                for block in self.pattern
            ],
        )

    def __call__(self, params: Params, batch: Batch, state: ModelState | None = None) -> Output:
        """Logits of the next token (fp32), and the state after the last. See `hidden`."""
        out = self.hidden(params, batch, state)
        return out._replace(x=self.logits(params, out.x))

    @_precise
    def hidden(
        self,
        params: Params,
        batch: Batch,
        state: ModelState | None = None,
        shards: Shards | None = None,
        per_token: PerToken | None = None,
    ) -> Output:
        """What the head reads, and the state after the last token (None without a state).

        With a state the tokens continue the text that made it. shards: the T tokens are one
        device's piece of longer texts (`lcx.parallel.seqpar.sharded`). per_token: of the same
        parameters.
        """
        tokens, positions, segments = batch.tokens, batch.positions, batch.segments
        rows, length = tokens.shape
        begun = BEGIN in params
        if begun and segments is None:
            segments = jnp.ones_like(tokens)  # a document's first token has to be known
        if positions is None:
            first = jnp.zeros(rows, jnp.int32) if state is None else state.position
            first = first + seqpar.index(shards) * length
            positions = first[:, None] + jnp.arange(length, dtype=jnp.int32)
        lengths = batch.lengths
        if lengths is None:
            whole = jnp.full(rows, seqpar.length(length, shards), jnp.int32)
            whole = whole if state is None else state.length
            lengths = jnp.broadcast_to(whole[:, None], tokens.shape)
        before = absent_fields(state, ModelState).segment
        at, long = positions, lengths
        if begun:
            at, long = positions + params[BEGIN], lengths + params[BEGIN]
        ctx = Context.of(at, segments, before, long, shards)
        ctx = ctx._replace(keys=batch.keys, kernels=Kernels(self.policy.kernels))
        table = seqpar.replicate(params.embed.embedding[...], shards)
        x = by_rows(sums.rows(table, tokens).astype(self.policy.compute))
        # layers draw by their indices, and the noise by the next number
        x = noisy(x, self.embed_noise, ctx.drawing(self.dims.layers))
        if self.embed_factor is not None:
            x *= jnp.asarray(self.embed_factor, x.dtype)
        if self.positions:
            x += self.positions(params.positions, at).astype(x.dtype)
        if self.embed_norm:
            x = params.embed_norm(x)
        if state is None:
            x, aux = self._train_layers(params.blocks, x, ctx)
            return Output(params.norm(x), None, aux)
        own = self._layers(params) if per_token is None else per_token.layers
        x, layers, aux = self._stream_layers(own, x, ctx, state.layers)
        segment = jnp.zeros_like(state.segment) if segments is None else segments[:, -1]
        after = ModelState(
            length=lengths[:, -1],
            position=seqpar.last(positions[:, -1] + 1, shards),
            segment=seqpar.last(segment, shards),
            layers=layers,
        )
        return Output(params.norm(x), after, aux)

    def _train_layers(
        self, params: nnx.List, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """The pattern, `repeats` times: written out, or one compiled loop."""

        def pattern(carry, layers):
            (x, handed), (params, repeat) = carry, layers
            auxes = []
            for place, block in enumerate(self.pattern):
                own = ctx.drawing(repeat * len(self.pattern) + place)
                out, handed = block(params[place], x, own, None, handed)
                x = by_rows(out.x)
                auxes.append(out.aux)
            return (x, handed), joined(*auxes)

        match self.remat:
            case "none":
                pass
            case "block":
                pattern = jax.checkpoint(pattern)
            case "dots":
                policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
                pattern = jax.checkpoint(pattern, policy=policy)
        together = self.repeats if self.repeats <= WRITTEN_OUT else 1
        layers = params, jnp.arange(self.repeats)
        (x, _), stacked = jax.lax.scan(pattern, (x, self._handed(x)), layers, unroll=together)
        penalty = None if stacked.penalty is None else stacked.penalty.sum()
        reports = {n: a.reshape(-1, *a.shape[2:]) for n, a in stacked.reports.items()}
        return x, Aux(reports, penalty)

    def _stream_layers(
        self,
        params: list[Params],
        x: Float[Array, "B T D"],
        ctx: Context,
        state: list[BlockState],
    ) -> tuple[Float[Array, "B T D"], list[BlockState], Aux]:
        """The layers one by one: a loop would copy every layer's state, a key cache whole."""
        after, auxes, handed = [], [], self._handed(x)
        for layer, (own, before) in enumerate(zip(params, state, strict=True)):
            block = self.pattern[layer % len(self.pattern)]
            out, handed = block(own, x, ctx.drawing(layer), before, handed)
            x = out.x
            after.append(out.state)
            auxes.append(out.aux)
        return x, after, joined(*auxes)

    def per_token(self, params: Params) -> PerToken:
        """The same parameters for a loop over single tokens."""
        return PerToken(self._layers(params), self._head(params).astype(self.policy.compute))

    def _layers(self, params: Params) -> list[Params]:
        """Each layer's own parameters, in the order in which they run."""
        return [
            jax.tree.map(lambda a, r=repeat: a[r], place)
            for repeat in range(self.repeats)
            for place in params.blocks
        ]

    def _head(self, params: Params) -> Float[Array, "D vocab"]:
        return params.embed.embedding[...].T if self.tied else params.head.kernel[...]

    def _handed(self, x: Float[Array, "B T D"]) -> tuple[Handed, ...]:
        """What the first layers are handed: one of each kind that any layer hands on."""
        kinds = dict.fromkeys(kind for block in self.pattern for kind in block.handed)
        return tuple(kind.initial(x) for kind in kinds)

    @_precise
    def logits(
        self, params: Params, x: Float[Array, "... D"], per_token: PerToken | None = None
    ) -> Float[Array, "... vocab"]:
        """The head, in fp32."""
        head = self._head(params) if per_token is None else per_token.head
        rows = x.reshape(-1, x.shape[-1])  # one product of matrices, as in `lcx.dense`
        out = jnp.matmul(rows, head.astype(x.dtype), preferred_element_type=jnp.float32)
        if self.softcap is not None:
            out = self.softcap * jnp.tanh(out / self.softcap)
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
