"""What a sparsity is to the mixer that calls it."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from lcx.positions import PositionScheme
from lcx.types import Context, State


@runtime_checkable
class Sparsity(Protocol):
    """Which keys a query sees, and what must be kept of the past for that. It has no parameters.

    `SoftmaxAttention` projects; the sparsity marks queries and keys with their positions, attends
    and keeps the state. So one set of weights runs under every sparsity.
    """

    def check(self, heads: int, groups: int, position: PositionScheme) -> None:
        """Raise ValueError where these heads and KV heads, or this scheme, do not fit."""
        ...

    def keys_seen(self, length: int) -> float:
        """How many keys a query sees, on average over a text of `length` tokens."""
        ...

    def init_state(self, batch: int, capacity: int, groups: int, width: int, dtype: Any) -> State:
        """The state before the first token of a text of at most `capacity` tokens.

        `groups` KV heads of `width` features each; activations are kept in `dtype`.
        """
        ...

    def __call__(
        self,
        q: Float[Array, "B T H K"],
        k: Float[Array, "B T G K"],
        v: Float[Array, "B T G V"],
        ctx: Context,
        position: PositionScheme,
        softcap: float | None,
        state: State | None,
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"], State | None]:
        """The output, the logsumexp (fp32) of each query's scores, and the state after.

        q and k come without positions: the sparsity calls `position(q, k, ctx)`, or with
        positions of its own, and gives the op the scheme's slopes and decays. `softcap` goes to
        the op. What a query sees lies in its own document (`ctx.segments`, `ctx.starts`), and a
        query that sees no key has o = 0 and lse = HIDDEN, as in `lcx.ops.attention`. None in means
        None out.
        """
        ...
