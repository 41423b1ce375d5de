"""What a sparsity is to the mixer that calls it."""

from typing import NamedTuple, Protocol, runtime_checkable

from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lcx.positions import PositionScheme
from lcx.types import Context, State


class Request(NamedTuple):
    """What attention is asked: queries, keys and values without positions, and how to attend."""

    q: Float[Array, "B T H K"]
    k: Float[Array, "B T G K"]
    v: Float[Array, "B T G V"]
    ctx: Context
    position: PositionScheme
    softcap: float | None = None
    state: State | None = None

    def encoded(self) -> "Request":
        """The same with the positions of queries and keys encoded."""
        q, k = self.position(self.q, self.k, self.ctx)
        return self._replace(q=q, k=k)


class Attended(NamedTuple):
    """What attention answers."""

    o: Float[Array, "B T H V"]
    lse: Float[Array, "B T H"]
    """The logsumexp (fp32) of each query's scores."""
    state: State | None
    """After the last token; None where none was given."""


@runtime_checkable
class Sparsity(Protocol):
    """Which keys a query sees, and what must be kept of the past for that. It has no parameters.

    `SoftmaxAttention` projects; the sparsity encodes the positions of queries and keys, attends
    and keeps the state. So one set of weights runs under every sparsity.
    """

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        """Raise ValueError where these heads and KV heads, or this scheme, do not fit."""
        ...

    def keys_seen(self, length: int) -> float:
        """How many keys a query sees, on average over a text of `length` tokens."""
        ...

    def init_state(
        self, batch: int, capacity: int, groups: int, width: int, dtype: DTypeLike
    ) -> State:
        """The state before the first token of a text of at most `capacity` tokens.

        `groups` KV heads of `width` features each; activations are kept in `dtype`.
        """
        ...

    def __call__(self, asked: Request) -> Attended:
        """Attention of each query to the keys that it sees, in its own document.

        The sparsity calls `position(q, k, ctx)`, or with positions of its own, and gives the op the
        scheme's slopes and decays, and `softcap`. Documents are told apart by `ctx.segments` and
        `ctx.starts`. A query that sees no key has o = 0 and lse = MASK_VALUE, as in
        `lcx.ops.attention`.
        """
        ...
