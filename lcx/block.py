"""Blocks: a token mixer and a channel mixer, and how norms and residuals join them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from lcx.layers import Norm, RMSNorm, SwiGLU
from lcx.layers.dropout import dropped
from lcx.mixers import SoftmaxAttention
from lcx.types import (
    Aux,
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
    """Empty where there is no channel mixer."""


@dataclass(frozen=True)
class Block:
    """Two sublayers, each behind a norm and before a residual: a token mixer, a channel mixer.

    x + mixer(norm(x)), then x + channel(norm(x)): pre-norm, as in GPT-2 and Llama.
    """

    mixer: Sublayer = SoftmaxAttention()
    channel: Sublayer | None = SwiGLU()
    """None: the token mixer alone, as in Mamba."""
    norm: Norm = RMSNorm()
    dropout: float = 0.0
    """Share of what each residual adds that training sets to zero (Srivastava et al. 2014)."""

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: dropout must be in [0, 1), not {self.dropout}")

    @property
    def sublayers(self) -> dict[str, Sublayer]:
        """Those that there are, by name."""
        both = {"mixer": self.mixer, "channel": self.channel}
        return {name: sublayer for name, sublayer in both.items() if sublayer is not None}

    @property
    def handed(self) -> list[type[Handed]]:
        """What its sublayers hand on to later layers, each kind once."""
        sublayers = self.sublayers.values()
        return list(dict.fromkeys(s.handed for s in sublayers if isinstance(s, CrossLayer)))

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        params = nnx.Dict()
        for name, sublayer in self.sublayers.items():
            params[f"{name}_norm"] = self.norm.init(dims, rngs)
            params[name] = sublayer.init(dims, rngs)
        return params

    def init_state(self, dims: Dims, batch: int, capacity: int) -> BlockState:
        states = {n: s.init_state(dims, batch, capacity) for n, s in self.sublayers.items()}
        return BlockState(states["mixer"], states.get("channel", ()))

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
        run = Run(self, params, ctx, absent_fields(state, BlockState), handed)
        x = self.residuals(params, x, run)
        after = state and BlockState(run.states["mixer"], run.states.get("channel", ()))
        return Output(x, after, joined(*run.auxes)), run.handed

    def residuals(
        self, params: Params, x: Float[Array, "B T D"], run: "Run"
    ) -> Float[Array, "B T D"]:
        """Where norms and residuals are: what kinds of blocks differ in."""
        x = x + run.mixer(params.mixer_norm(x))
        return x if self.channel is None else x + run.channel(params.channel_norm(x))


@dataclass(frozen=True)
class PostNormBlock(Block):
    """norm(x + mixer(x)), then norm(x + channel(x)), as in the first Transformer (2017)."""

    def residuals(
        self, params: Params, x: Float[Array, "B T D"], run: "Run"
    ) -> Float[Array, "B T D"]:
        x = params.mixer_norm(x + run.mixer(x))
        return x if self.channel is None else params.channel_norm(x + run.channel(x))


@dataclass(frozen=True)
class SandwichBlock(Block):
    """x + norm(mixer(norm(x))), then x + norm(channel(norm(x))): a norm on both sides (Gemma 2)."""

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        params = super().init(dims, rngs)
        for name in self.sublayers:
            params[f"{name}_after"] = self.norm.init(dims, rngs)
        return params

    def residuals(
        self, params: Params, x: Float[Array, "B T D"], run: "Run"
    ) -> Float[Array, "B T D"]:
        x = x + run.mixer(params.mixer_norm(x), params.mixer_after)
        if self.channel is None:
            return x
        return x + run.channel(params.channel_norm(x), params.channel_after)


@dataclass(frozen=True)
class ParallelBlock(Block):
    """x + mixer(norm(x)) + channel(norm(x)): both read the same x (GPT-J, GPT-NeoX, Falcon)."""

    one_norm: bool = False
    """Both read it behind the same norm (GPT-J, Falcon-7B), and not each behind its own (NeoX)."""

    def __post_init__(self):
        super().__post_init__()
        if self.channel is None:
            raise ValueError("ParallelBlock: without a channel mixer nothing is parallel; Block is")

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        params = super().init(dims, rngs)
        if self.one_norm:
            del params["channel_norm"]
        return params

    def residuals(
        self, params: Params, x: Float[Array, "B T D"], run: "Run"
    ) -> Float[Array, "B T D"]:
        normed = params.mixer_norm(x)
        other = normed if self.one_norm else params.channel_norm(x)
        return x + run.mixer(normed) + run.channel(other)


BLOCKS: dict[str, type] = {
    c.__name__: c for c in (Block, PostNormBlock, SandwichBlock, ParallelBlock)
}


class Run:
    """One call of a block: its sublayers, and what they give beside what is added to x."""

    def __init__(
        self,
        block: Block,
        params: Params,
        ctx: Context,
        before: BlockState,
        handed: tuple[Handed, ...],
    ):
        self._block, self._params, self._ctx, self._before = block, params, ctx, before
        self.handed = handed
        self.states: dict[str, State] = {}
        self.auxes: list[Aux] = []

    def mixer(
        self, x: Float[Array, "B T D"], norm: nnx.Module | None = None
    ) -> Float[Array, "B T D"]:
        """What the token mixer adds, behind a norm of its own where one is given."""
        return self._sublayer("mixer", x, norm, drawing=0)

    def channel(
        self, x: Float[Array, "B T D"], norm: nnx.Module | None = None
    ) -> Float[Array, "B T D"]:
        """What the channel mixer adds."""
        return self._sublayer("channel", x, norm, drawing=2)

    def _sublayer(self, name: str, x: Array, norm: Any, drawing: int) -> Array:
        sublayer, before = self._block.sublayers[name], getattr(self._before, name)
        ctx = self._ctx.drawing(drawing)
        if f"{name}_initial" in self._params:  # fine-tuning has put it there (`lcx.adapters`)
            ctx = ctx._replace(initial=self._params[f"{name}_initial"])
        out, self.handed = _call(sublayer, self._params[name], x, ctx, before, self.handed)
        self.states[name] = out.state
        self.auxes.append(out.aux)
        y = out.x
        if f"{name}_adapter" in self._params:  # as above
            y = self._params[f"{name}_adapter"](y)
        y = y if norm is None else norm(y)
        return dropped(y, self._block.dropout, self._ctx.drawing(drawing + 1))


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
