"""A trained model that another one learns from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from lcx.logits import OverLogits
from lcx.model import LM
from lcx.parallel.seqpar import Shards
from lcx.types import Batch, Params


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["model"])
@dataclass(frozen=True)
class Teacher:
    """A frozen model and its parameters: one argument of the training step. A pytree."""

    model: LM
    params: Params

    def beside(self, over: OverLogits, batch: Batch, shards: Shards | None = None) -> OverLogits:
        """The student's `over_logits`, whose f is given the teacher's logits after the student's.

        batch: what both read, with the same positions and documents; nothing is random in the
        teacher. Its logits come in the same pieces, and are computed again with them.
        """
        read = self.model.hidden(self.params, batch._replace(keys=None), shards=shards).x

        def over_both(f: Callable[..., Any], x: Float[Array, "B T D"], *per_token: Array) -> Any:
            def piece(logits: Array, read: Array, *cut: Array) -> Any:
                return f(logits, self.model.logits(self.params, read), *cut)

            return over(piece, x, read, *per_token)

        return over_both
