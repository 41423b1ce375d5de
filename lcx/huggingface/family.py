"""What a family of published models is: its config, and a table of where its parameters are."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lcx.block import Block
from lcx.huggingface.config import Config
from lcx.model import LM


class Rule(NamedTuple):
    """One published tensor, and the parameters that are in it.

    Read in both directions. Parameters and tensors have the same values: what differs is their
    order, which side of a matrix is the input's, and how many of them are one tensor.
    """

    tensor: str
    """Its name; of a block's, with the layer as `{}`."""
    leaves: tuple[str, ...]
    """Of the model's parameters, or of the block's, by path."""
    groups: int = 1
    """Where there are several: the outputs are so many groups, each with every leaf's share."""
    turned: bool | None = None
    """Whether it is the transpose; None: of kernels, since torch keeps them as [out, in]."""
    shape: tuple[int, ...] | None = None
    """How it is shaped, with -1 for what follows from its size; None: as the parameters are."""


def rules(names: dict[str, str]) -> tuple[Rule, ...]:
    """Those of tensors with one parameter each, from parameter to tensor."""
    return tuple(Rule(tensor, (leaf,)) for leaf, tensor in names.items())


@runtime_checkable
class Family(Protocol):
    """A family of published models, by the name that their configs have for it."""

    @property
    def kinds(self) -> Sequence[str]:
        """Its `model_type`s."""
        ...

    @property
    def heads(self) -> Sequence[str]:
        """Names of the head's tensor, of which the first is written; a tied head's are copies."""
        ...

    def read(self, config: Config) -> LM:
        """The architecture that a config tells. Raises ValueError for what lcx does not have."""
        ...

    def write(self, model: LM) -> dict[str, Any] | None:
        """The config of an architecture, `model_type` among it; None: another family's.

        Where a width or a number of heads follows from another, the architecture says both.
        May be of a model that differs in what the family does not have: the writer reads it back.
        """
        ...

    def around(self, model: LM) -> tuple[Rule, ...]:
        """Rules of the parameters before and after the blocks, but for the head."""
        ...

    def within(self, model: LM, block: Block) -> tuple[Rule, ...]:
        """Rules of a block's."""
        ...
