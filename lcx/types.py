"""The few words that every room shares.

Axis letters, which mean the same in every shape of the project; others are words:

    B batch        T query time    S key time      D model width
    H heads        G KV heads      R query heads of a KV head, H / G
    K key width    V value width   P rotary pairs  F feed-forward width
    C chunk        N chunks        W window        L layers

A small letter is a piece of what its capital is (t of T), or any number (n). In tiles, Q are the
queries of one and X the width of what is cut.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from lcx.kernels import FASTEST_THERE_IS, Kernels
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Shards

Params = nnx.Dict
"""A tree of parameters: plain pytree, made by a spec's `init` and taken by its `__call__`."""

Leaves = dict[str, nnx.Variable]
"""Some of a model's parameters by path, such as `blocks.0.mixer.q.kernel`."""

Ids = Int[np.ndarray, "_"]
"""Token ids of one text."""

State = Any
"""What is remembered between two pieces of a text: a NamedTuple, each sublayer's of its own type,
every array of which has the batch axis first (`take_rows`). Sums over the past are annotated as
`Float32`: they are fp32 whatever the policy says. Stateless: the empty tuple."""


@dataclass(frozen=True)
class Policy:
    """Dtypes, and forms of operations.

    Parameters are stored in `params`, activations are computed in `compute`.

    Rotary angles, norm statistics, softmax, decays, recurrent states, losses and optimizer
    moments are fp32 whatever this says. So are sums over tokens, over the parts of a batch
    (`train.accumulate`) and over steps: gradients of tables, of vectors and of the head, whose
    logits come in pieces, accumulated gradients, norms and reports. The gradient of a weight matrix
    is rounded once, to `compute` and to `params`, before it is used or added to another part's or
    another device's; so is every gradient, to `params`, before shards of a sequence add theirs.

    There is no fp32 copy of parameters that are stored in bfloat16: an update is added in fp32, and
    the sum is rounded to the nearest bfloat16, of 8 significant bits. An update below 1/512 of its
    parameter, or up to twice that, leaves the parameter as it was, however often it comes. Small
    learning rates so train vectors near 1, such as the scales of norms, little or not at all.
    """

    params: Literal["float32", "bfloat16"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"
    kernels: Literal["reference", "xla", "pallas"] | None = None
    """Which form of each operation runs (`lcx.kernels`); None: the fastest on the platform."""
    products: Literal["float32", "tensorfloat32", "bfloat16"] | None = None
    """How exact products of fp32 matrices are at least, where the hardware has faster ones that
    round their factors first: to 11 bits on NVIDIA GPUs (TF32), to 8 on TPUs (bf16). What JAX does
    by default, "bfloat16" here, is the fastest there is. No effect on CPUs, nor on products of bf16
    matrices. None: float32 where activations are, so that all platforms agree, else tensorfloat32,
    which costs recurrent states in fp32 less than they lose beside bf16."""

    @contextmanager
    def precise(self) -> Iterator[None]:
        """Within it, products are traced as `products` says. Also decorates."""
        said = self.products
        if said is None:
            said = "float32" if self.compute == "float32" else "tensorfloat32"
        with jax.default_matmul_precision(said):
            yield


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


class Batch(NamedTuple):
    """Rows of tokens, and what is known of each: what a model reads and a loss is taken of.

    None: as if each row were one document that begins with the row, or with the state that it
    continues.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"] | None = None
    """Of each token in its document; None: counted on from the state, or from 0."""
    segments: Int[Array, "B T"] | None = None
    """Which document of its row each token belongs to: 1, 2, ...; 0 is padding."""
    lengths: Int[Array, "B T"] | None = None
    """How long each token's text will have become at its end, for position schemes that depend on
    it; None: T, or as the state was given."""
    targets: Int[Array, "B T"] | None = None
    """The token after each; negative where it cannot be known. The model does not read them."""
    keys: Key[Array, "B T"] | None = None
    """A random key a token, of a training step; None: nothing is random."""
    reference: Float[Array, "B T"] | None = None
    """The log-probability of each target under the parameters that training started from, 0 where
    it does not count; for losses that ask for it (`DPO`). The model does not read them."""

    @property
    def real(self) -> Bool[Array, "B T"]:
        """Which tokens are no padding."""
        return real_tokens(self.tokens.shape, self.segments)

    @property
    def scored(self) -> Bool[Array, "B T"]:
        """Which targets count: those of no padding, and not marked as unpredictable by a -1."""
        if self.targets is None:
            raise ValueError("a batch without targets has nothing to score")
        return self.real & (self.targets >= 0)


def real_tokens(shape: tuple[int, ...], segments: Int[Array, "B T"] | None) -> Bool[Array, "B T"]:
    """Which tokens are no padding."""
    return jnp.ones(shape, bool) if segments is None else segments > 0


class Aux(NamedTuple):
    """What sublayers report beside their output; nearly all report nothing.

    Every value is a sum over the real tokens (not padding) that the sublayer saw, in fp32, so that
    the reports of parts of a batch add up. Training divides by the number of real tokens.
    """

    reports: dict[str, Float[Array, "reporters ..."]]
    """What the log shows, by name; the leading axis counts the sublayers that report it, in order
    of depth. A sublayer's own has size 1 there."""
    penalty: Float[Array, ""] | None = None
    """Added to what training minimises, with the sublayer's own weight: a router's balance, say."""


NO_AUX = Aux({})


def joined(*auxes: Aux) -> Aux:
    """The reports of sublayers, in this order. Raises ValueError for one name with two shapes."""
    penalties = [aux.penalty for aux in auxes if aux.penalty is not None]
    reports: dict[str, list[Array]] = {}
    for aux in auxes:
        for name, value in aux.reports.items():
            reports.setdefault(name, []).append(value)
    for name, values in reports.items():
        if len(shapes := {value.shape[1:] for value in values}) > 1:
            listed = " and ".join(map(str, sorted(shapes)))
            raise ValueError(f"sublayers report {name!r} in the shapes {listed}; give it two names")
    return Aux(
        {name: jnp.concatenate(values) for name, values in reports.items()},
        sum(penalties[1:], penalties[0]) if penalties else None,
    )


class Output(NamedTuple):
    """What a sublayer, a block or a model gives back."""

    x: Float[Array, "B T D"]
    """[B T D]; of a model that is called, logits [B T vocab]."""
    state: State | None = None
    """After the last token; None where none was given."""
    aux: Aux = NO_AUX


class Context(NamedTuple):
    """What every layer is given with the tokens it sees. A pytree.

    `segments` says which document each token belongs to; rows packed with several documents need
    it, and 0 marks padding. `starts` is the same fact as a recurrence wants it: true on the first
    token of a document, also when that token is the first of a piece. Both are None when each row
    is one document. `lengths` is how long the text of each token will have become at its end, for
    position schemes that depend on it; None: no longer than a training's. `shards` says that these
    T tokens are one device's piece of a longer sequence (`lcx.parallel.seqpar`); what an op needs
    of the other pieces it fetches when it is given `shards`. `keys` are this sublayer's own, one a
    token, for what is random in training; None: nothing is. `kernels` is for ops. `initial` is what
    a sublayer remembers before a document's first token, in one row; None: nothing.
    """

    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    starts: Bool[Array, "B T"] | None = None
    lengths: Int[Array, "B T"] | None = None
    shards: Shards | None = None
    keys: Key[Array, "B T"] | None = None
    kernels: Kernels = FASTEST_THERE_IS
    initial: State | None = None

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

    @property
    def real(self) -> Bool[Array, "B T"]:
        """Which tokens are no padding."""
        return real_tokens(self.positions.shape, self.segments)

    def drawing(self, purpose: int | Int[Array, ""]) -> "Context":
        """The same with keys of their own for one of several purposes; layers are such."""
        return self if self.keys is None else self._replace(keys=folded(self.keys, purpose))


def folded(keys: Key[Array, "B T"], data: int | Int[Array, "..."]) -> Key[Array, "B T"]:
    """Each key with `data` folded in: one number for all, or one for each."""
    data = jnp.broadcast_to(jnp.asarray(data, jnp.uint32), keys.shape)
    return jax.vmap(jax.vmap(jax.random.fold_in))(keys, data)


@runtime_checkable
class Sublayer(Protocol):
    """A token mixer, or a channel mixer: what stands behind a norm and before a residual.

    One call serves three uses. Training: `state=None`. Streaming a long text in pieces: a state and
    any number of tokens. Decoding: a state and one token. None in means None out.
    """

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        """Fresh parameters. Raises ValueError when the spec does not fit `dims`."""
        ...

    def init_state(self, dims: Dims, batch: int, capacity: int) -> State:
        """The state before the first token, of a text of at most `capacity` tokens."""
        ...

    def __call__(
        self, params: Params, x: Float[Array, "B T D"], ctx: Context, state: State | None = None
    ) -> Output: ...


@runtime_checkable
class Begins(Protocol):
    """A sublayer whose documents can begin from any state of its own (`Context.initial`).

    Fields of it that are None are as before the first token.
    """

    @property
    def learned_state(self) -> str | None:
        """Which part of its state sums the values of the past (`S`), and can be learned in place of
        zeros; None: there is none."""
        ...


@runtime_checkable
class CountsFlops(Protocol):
    """A token mixer that knows what mixing takes. One that does not leaves a gap in cost tables."""

    def mixing_flops(self, dims: Dims, length: int) -> float:
        """FLOPs per token of the forward pass beyond a multiply-add (two) for each parameter.

        By the mixer's formula, on average over a text of `length` tokens.
        """
        ...


@runtime_checkable
class HasHeads(Protocol):
    """A sublayer with heads, each of which `mesh.model` leaves whole."""

    def head_count(self, dims: Dims) -> int:
        """H. Raises ValueError when the spec does not fit `dims`."""
        ...


@runtime_checkable
class SharesKeys(Protocol):
    """A sublayer whose heads share heads of keys, which `mesh.model` leaves whole, too.

    Not one whose shared keys are copied to every device, as grouped attention's are.
    """

    def key_head_count(self, dims: Dims) -> int:
        """G, which divides H."""
        ...


@runtime_checkable
class Handed(Protocol):
    """What layers of one kind hand on to later ones: a NamedTuple of arrays."""

    @classmethod
    def initial(cls, x: Float[Array, "B T D"]) -> "Handed":
        """What the first such layer is given, for a residual stream like x."""
        ...


@runtime_checkable
class CrossLayer(Protocol):
    """A sublayer whose layers hand something on to later layers, beside the residual stream.

    A model calls `share` where it would call the sublayer itself; called alone, the sublayer is its
    own first layer.
    """

    @property
    def handed(self) -> type[Handed]:
        """What it hands on; sublayers that name the same type pass it to each other."""
        ...

    def share(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        ctx: Context,
        state: State | None,
        handed: Any,
    ) -> tuple[Output, Any]:
        """As the call, given what the layer before handed on; returns what this one does, too."""
        ...


def absent_fields(state: Any, kind: type) -> Any:
    """The state; where there is none, one of its kind with None in every field."""
    return kind(*(None,) * len(kind._fields)) if state is None else state


def take_rows(state: State, rows: Int[Array, " n"]) -> State:
    """The state of these rows, in this order; a row may be taken several times."""
    return jax.tree.map(lambda a: a[rows], state)


def tree_bytes(tree: Any) -> int:
    """Bytes held by the arrays (real or abstract) of a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
