"""Recurrences begin documents from learned states."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lcx.adapters.beginning import NotMerged, mixer_names, with_beginning
from lcx.dense import vector
from lcx.model import LM
from lcx.types import Begins, Leaves, Params, State


@dataclass(frozen=True)
class InitialState(NotMerged):
    """State tuning: each recurrence begins a document from a learned state, in place of zeros.

    Learned is the sum of the past's values, in fp32: matrices S, of RG-LRU the vector h, of RWKV-4
    the numerator, beside which keys below -87 count as nothing. What normalises it begins from
    nothing: a learned denominator could become negative. 0 at first, so that the model begins as
    its base. Sublayers that sum nothing, such as softmax attention in a hybrid, stay as they are;
    `PrefixTuning` is their like. As RWKV-5 to 7 are tuned by RWKV-PEFT ("state tuning").
    """

    def trained(self, model: LM) -> frozenset[str]:
        if not _summing(model):
            raise ValueError(
                f"InitialState: {mixer_names(model)} has no sum of the past that could be learned; "
                "recurrences have, such as GatedDeltaNet and RWKV7; for softmax attention there is "
                "PrefixTuning"
            )
        return frozenset()

    def init(self, model: LM, base: Params, rngs: nnx.Rngs) -> Leaves:
        return {
            f"{there.path}.{there.sum}": vector(jnp.zeros_like(there.learned))
            for there in _summing(model)
        }

    def place(self, model: LM, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        states = {}
        for there in _summing(model):
            zeros = jax.tree.map(jnp.zeros_like, there.state)
            value = added[f"{there.path}.{there.sum}"][...]
            states[there.place, there.name] = with_field(zeros, there.sum, value)
        return with_beginning(params, states, 0, added)


class _Sum(NamedTuple):
    """A sublayer with a sum that can be learned."""

    place: int
    name: str
    sum: str
    """Which part of its state."""
    state: State
    """The shapes of that, of one row, stacked over repeats."""

    @property
    def path(self) -> str:
        return f"blocks.{self.place}.{self.name}_initial"

    @property
    def learned(self) -> jax.ShapeDtypeStruct:
        return reduce(getattr, self.sum.split("."), self.state)


def _summing(model: LM) -> list[_Sum]:
    """Those of a model."""

    def stacked(a: jax.Array) -> jax.Array:
        return jnp.broadcast_to(a, (model.repeats, *a.shape))

    found = []
    for place, block in enumerate(model.pattern):
        for name, sublayer in block.sublayers.items():
            if isinstance(sublayer, Begins) and sublayer.learned_state is not None:
                one = partial(block.init_state, model.dims, 1, 1)
                state = jax.eval_shape(lambda one=one: jax.tree.map(stacked, one()))
                found.append(_Sum(place, name, sublayer.learned_state, getattr(state, name)))
    return found


def with_field(state: State, path: str, value: jax.Array) -> State:
    """The state with another value at a path; other fields of its own are absent."""
    name, _, within = path.partition(".")
    if within:  # a part of a part, whose others stay
        value = getattr(state, name)._replace(**{within: value})
    return type(state)(**dict.fromkeys(state._fields) | {name: value})
