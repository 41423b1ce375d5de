"""What a method of fine-tuning few parameters is."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from flax import nnx

from lcx.model import LM
from lcx.types import Leaves, Params


@runtime_checkable
class Tuning(Protocol):
    """Which parameters of a model are trained, and what is added to it.

    All other parameters are frozen: they take no gradient, no moments and no checkpoint space. What
    a method adds is a module in the tree of parameters, which mixers call as they call any other
    (decision 22). A frozen dataclass in a file of `lcx/adapters/` and a line in `ADAPTERS`.
    """

    def trained(self, model: LM) -> frozenset[str]:
        """Paths of the model's own parameters that are trained.

        Raises ValueError where the method does not fit the model.
        """
        ...

    def init(self, model: LM, base: Params, rngs: nnx.Rngs) -> Leaves:
        """First values of what is added, by path, beside the parameters of the base.

        With them the model computes what it did; beside virtual tokens, something else. Raises
        ValueError where the method does not fit the model.
        """
        ...

    def place(self, model: LM, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        """The model's tree with what is added, or what is made of it, in its place.

        The model's own arrays are the same ones.
        """
        ...

    def merge(self, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        """A tree of the plain model that computes the same, in fp32 and rounded once.

        Raises ValueError where no plain model does.
        """
        ...


@runtime_checkable
class HasVirtualTokens(Protocol):
    """A method that puts tokens of its own before every document."""

    @property
    def tokens(self) -> int:
        """How many; a document's own stand at positions from there on."""
        ...


class TrainsOwn:
    """A method that trains some of the model's own parameters and adds none."""

    def init(self, model: LM, base: Params, rngs: nnx.Rngs) -> Leaves:
        return {}

    def place(self, model: LM, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        return params

    def merge(self, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        return params
