"""The few words that every room shares.

Axis letters, used in every shape of the project:

    B batch        T query time    S key time      D model width
    H heads        G KV heads      K key width     V value width
    C chunk        N chunks        W window        L layers       F feed-forward width
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lcx import seqpar
from lcx.seqpar import Shards

Params = nnx.Dict
"""A tree of parameters: plain pytree, made by a spec's `init` and taken by its `__call__`."""

State = dict[str, Any]
"""What a half of a block remembers between two pieces of one text. Stateless: the empty dict."""


@dataclass(frozen=True)
class Policy:
    """Dtypes: parameters are stored in `params`, activations are computed in `compute`.

    Rotary angles, norm statistics, softmax, decays, recurrent states, losses and optimizer
    moments are fp32 whatever this says.
    """

    params: Literal["float32", "bfloat16"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Dims:
    """What a layer must know of the model around it."""

    model: int
    """D, the width of the residual stream."""
    layers: int = 1
    """L, the number of layers of the whole model."""
    layer: int | Int[Array, ""] = 0
    """This layer's index in [0, L). Traced when layers are initialised together: no `if` on it."""
    policy: Policy = Policy()


class Context(NamedTuple):
    """What every layer is told of the tokens it sees. A pytree.

    `segments` says which document each token belongs to; rows packed with several documents need
    it, and 0 marks padding. `starts` is the same fact as a recurrence wants it: true on the first
    token of a document, also when that token is the first of a piece. Both are None when each row
    is one document. `lengths` is how long the text of each token will have become at its end, for
    position schemes that depend on it; None: no longer than a training's. `shards` says that these
    T tokens are one device's piece of a longer sequence (`lcx.seqpar`); what an op needs of the
    other pieces it fetches when it is given `shards`.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    starts: Bool[Array, "B T"] | None = None
    lengths: Int[Array, "B T"] | None = None
    shards: Shards | None = None

    @classmethod
    def of(
        cls,
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        before: Int[Array, " B"] | None = None,
        lengths: Int[Array, "B T"] | None = None,
        shards: Shards | None = None,
    ) -> "Context":
        """The context of a piece of text whose preceding token lay in segment `before`.

        Without `before` the piece is the beginning: its first token starts a document.
        """
        if segments is None:
            return cls(positions, lengths=lengths, shards=shards)
        if before is None:
            before = jnp.full(segments.shape[:1], -1, segments.dtype)
        first = seqpar.halo(segments, before[:, None], shards)
        previous = jnp.concatenate([first, segments[:, :-1]], axis=1)
        return cls(positions, segments, segments != previous, lengths, shards)


@runtime_checkable
class Half(Protocol):
    """Half of a block: a token mixer, or a channel mixer. One call serves three uses.

    Training: `state=None`. Streaming a long text in pieces: a state and any number of tokens.
    Decoding: a state and one token. None in means None out.
    """

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        """Fresh parameters. Raises ValueError when the spec does not fit `dims`."""
        ...

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        """The state before the first token, of a text of at most `capacity` tokens."""
        ...

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> tuple[Float[Array, "B T D"], State | None]: ...


@runtime_checkable
class Mixer(Half, Protocol):
    """A token mixer that knows what mixing takes. One that does not leaves a gap in cost tables."""

    def mixing_flops(self, dims: Dims, length: int) -> float:
        """FLOPs a token of the forward pass beyond a multiply-add (two) for each parameter.

        By the mixer's formula, on average over a text of `length` tokens.
        """
        ...


@runtime_checkable
class Headed(Half, Protocol):
    """A half with heads, each of which `mesh.model` leaves whole."""

    def head_count(self, dims: Dims) -> int:
        """H. Raises ValueError when the spec does not fit `dims`."""
        ...


@runtime_checkable
class SharingHalf(Half, Protocol):
    """A half whose layers hand something on to the same kind of half in later layers.

    The model calls `share` where it would call the half itself; called alone, the half is its
    own first layer.
    """

    def init_shared(self, x: Float[Array, "B T D"]) -> Any:
        """What the first such layer is given, for a residual stream like x: a pytree."""
        ...

    def share(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        ctx: Context,
        state: State | None,
        shared: Any,
    ) -> tuple[Float[Array, "B T D"], State | None, Any]:
        """As the call, given what the layer before handed on; returns what this one does."""
        ...


def tree_bytes(tree: Any) -> int:
    """Bytes held by the arrays (real or abstract) of a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
