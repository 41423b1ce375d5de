"""A block: a token mixer and a channel mixer, each behind a norm and before a residual."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from lcx.layers import Norm, RMSNorm, SwiGLU
from lcx.layers.dropout import dropped
from lcx.mixers import SoftmaxAttention
from lcx.types import (
    Context,
    CrossLayer,
    Dims,
    Handed,
    Output,
    Params,
    State,
    Sublayer,
    absent_fields,
    joined,
)


class BlockState(NamedTuple):
    """What a block remembers."""

    mixer: State
    channel: State


@dataclass(frozen=True)
class Block:
    """Two sublayers, each behind a norm and before a residual: a token mixer, a channel mixer."""

    mixer: Sublayer = SoftmaxAttention()
    channel: Sublayer = SwiGLU()
    norm: Norm = RMSNorm()
    dropout: float = 0.0
    """Share of each sublayer's output that training sets to zero (Srivastava et al. 2014)."""

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Block: dropout must be in [0, 1), not {self.dropout}")

    @property
    def handed(self) -> list[type[Handed]]:
        """What its sublayers hand on to later layers, each kind once."""
        sublayers = (self.mixer, self.channel)
        return list(dict.fromkeys(s.handed for s in sublayers if isinstance(s, CrossLayer)))

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        return nnx.Dict(
            mixer_norm=self.norm.init(dims, rngs),
            mixer=self.mixer.init(dims, rngs),
            channel_norm=self.norm.init(dims, rngs),
            channel=self.channel.init(dims, rngs),
        )

    def init_state(self, dims: Dims, batch: int, capacity: int) -> BlockState:
        return BlockState(
            mixer=self.mixer.init_state(dims, batch, capacity),
            channel=self.channel.init_state(dims, batch, capacity),
        )

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        ctx: Context,
        state: BlockState | None,
        handed: tuple[Handed, ...],
    ) -> tuple[Output, tuple[Handed, ...]]:
        """The residual stream after this block, and what goes on to later blocks.

        handed: from earlier blocks, one of each kind that any block of the model hands on.
        """
        before = absent_fields(state, BlockState)
        normed = params.mixer_norm(x)
        mixed, handed = _call(
            self.mixer, params.mixer, normed, ctx.drawing(0), before.mixer, handed
        )
        x = x + dropped(mixed.x, self.dropout, ctx.drawing(1))
        normed = params.channel_norm(x)
        changed, handed = _call(
            self.channel, params.channel, normed, ctx.drawing(2), before.channel, handed
        )
        x = x + dropped(changed.x, self.dropout, ctx.drawing(3))
        after = state and BlockState(mixed.state, changed.state)
        return Output(x, after, joined(mixed.aux, changed.aux)), handed


def _call(
    sublayer: Sublayer,
    params: Params,
    x: Float[Array, "B T D"],
    ctx: Context,
    state: State | None,
    handed: tuple[Handed, ...],
) -> tuple[Output, tuple[Handed, ...]]:
    """A sublayer's output; and what later layers are handed, where it has a part in that."""
    if not isinstance(sublayer, CrossLayer):
        return _fitting(sublayer, sublayer(params, x, ctx, state), x), handed
    own = next(h for h in handed if isinstance(h, sublayer.handed))
    out, new = sublayer.share(params, x, ctx, state, own)
    _fitting(sublayer, out, x)
    return out, tuple(new if h is own else h for h in handed)


def _fitting(sublayer: Sublayer, out: Any, x: Float[Array, "B T D"]) -> Output:
    """The output, which is as it has to be: classes of the user's own stand here, too."""
    name = type(sublayer).__name__
    if not isinstance(out, Output):
        got = type(out).__name__
        raise ValueError(f"Block: {name} gave a {got}, expected an Output(x, state)")
    if out.x.shape != x.shape:
        got, expected = (list(a.shape) for a in (out.x, x))
        raise ValueError(f"Block: {name} gave x of {got}, expected {expected}")
    return out
