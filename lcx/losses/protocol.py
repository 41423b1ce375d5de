"""What a loss is to the training loop."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from lcx.huggingface import Pretrained
from lcx.logits import OverLogits
from lcx.model import LM
from lcx.parallel.seqpar import Shards
from lcx.types import Batch, Params


class LossSums(NamedTuple):
    """Sums over a batch, or over a part of one; fp32. Those of parts add up."""

    minimised: Float[Array, ""]
    """What training minimises, once it is divided; differentiable."""
    shown: Float[Array, ""]
    """What the log and the validation show, divided alike."""
    reports: dict[str, Float[Array, " 1"]] | None = None
    """What else the log shows, by name, divided alike; None: nothing."""


@runtime_checkable
class Loss(Protocol):
    """What training minimises: a sum over a batch, divided by a number known from the batch alone.

    The loop adds up the sums of all parts of a batch, whatever it is cut into (`accumulate`, the
    devices of a mesh), and divides them by `divisor` of the whole: so the loss is that of the whole
    batch, however it is cut.
    """

    @property
    def unit(self) -> str:
        """What the log and the validation show, as the report's picture says it: nats per token."""
        ...

    def divisor(self, batch: Batch) -> Float[Array, ""]:
        """What the sums of this batch are divided by: the tokens that are scored, say."""
        ...

    def __call__(
        self,
        x: Float[Array, "B T D"],
        batch: Batch,
        over_logits: OverLogits,
        shards: Shards | None = None,
    ) -> LossSums:
        """The sums over this batch, or over one device's piece of longer rows.

        x: what the head reads. over_logits: (f, x, *per_token) -> f(logits, *per_token) of every
        token, in pieces (`lcx.logits.over_logits`). Targets count where `batch.scored` says so.
        """
        ...


class OfTokens:
    """What losses of single tokens show, and by what they are divided."""

    @property
    def unit(self) -> str:
        return "nats per token"

    def divisor(self, batch: Batch) -> Float[Array, ""]:
        return batch.scored.sum().astype(jnp.float32)


@runtime_checkable
class OfWritten(Protocol):
    """A loss that adds, in some steps, something of what the model itself writes."""

    @property
    def rate(self) -> float:
        """The share of such steps."""
        ...

    def check(self, length: int) -> None:
        """Raise ValueError where rows of so many tokens do not do."""
        ...

    def of_written(self, model: LM, params: Params, batch: Batch) -> Float[Array, ""]:
        """A sum over whole rows that is minimised, too, divided as the others; not shown."""
        ...


@runtime_checkable
class OfPairs(Loss, Protocol):
    """A loss of pairs: rows 2i and 2i + 1 of a batch are a preferred answer and a rejected one."""

    @property
    def reference(self) -> bool:
        """Whether it needs `Batch.reference`: each target's log-probability at the start."""
        ...


@runtime_checkable
class OfTeacher(Loss, Protocol):
    """A loss that compares with a trained model: its f is given the teacher's logits, too.

    They come after the student's: f(logits, teacher's logits, *per_token).
    """

    @property
    def teacher(self) -> str | Pretrained:
        """The variant, or the published model."""
        ...

    @property
    def alone(self) -> Loss:
        """A loss without a teacher that shows the same: what the validation takes."""
        ...


def needs_reference(loss: Loss) -> bool:
    """Whether a loss reads `Batch.reference`."""
    return isinstance(loss, OfPairs) and loss.reference
