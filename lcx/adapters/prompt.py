"""Learned embeddings before every document."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.adapters.beginning import (
    NotMerged,
    after_tokens,
    check_sizes,
    drawn_embeddings,
    turns_alike,
    with_beginning,
)
from lcx.dense import matrix, normal, uniform, vector
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.types import Begins, Leaves, Params

PROMPT = "prompt.embedding"


@dataclass(frozen=True)
class PromptTuning(NotMerged):
    """Prompt tuning: learned embeddings of virtual tokens before every document.

    Lester et al. 2021 (arXiv:2104.08691), section 2. Whatever mixer a model has reads them as it
    reads any token; the document's own stand at positions from `tokens` on. They are read once for
    each part of a batch, not once a document, and are no targets. Softmax attention sees all of
    them, under any sparsity. At first they are the embeddings of tokens drawn from the vocabulary.
    """

    tokens: int = 20
    """M, virtual tokens."""

    def __post_init__(self):
        check_sizes(self)

    def trained(self, model: LM) -> frozenset[str]:
        _check(type(self).__name__, model)
        return frozenset()

    def init(self, model: LM, base: Params, rngs: nnx.Rngs) -> Leaves:
        return {PROMPT: vector(drawn_embeddings(base, self.tokens, rngs))}

    def embeddings(self, added: Mapping[str, nnx.Variable]) -> Float[Array, "M D"]:
        """Of the virtual tokens."""
        return added[PROMPT][...]

    def place(self, model: LM, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        states = after_tokens(model, params, self.embeddings(added))
        return with_beginning(params, states, self.tokens, added)


@dataclass(frozen=True)
class PTuning(PromptTuning):
    """P-tuning: prompt tuning whose embeddings come out of a small network, which is trained too.

    Liu et al. 2021 (arXiv:2103.10385), section 3.2, with an MLP alone, as peft's default has it:
    Linear, ReLU, Linear, ReLU, Linear, of vectors [M, D].
    """

    hidden: int | None = None
    """Features between; None: D."""

    def init(self, model: LM, base: Params, rngs: nnx.Rngs) -> Leaves:
        D, H, dtype = model.width, self.hidden or model.width, jnp.dtype(model.policy.params)
        added: Leaves = {PROMPT: vector(normal(1.0)(rngs.params(), (self.tokens, D), dtype))}
        for i, (inputs, outputs) in enumerate(((D, H), (H, H), (H, D))):
            draw = uniform(inputs**-0.5)  # as torch draws them
            added[f"prompt.{i}.kernel"] = matrix(draw(rngs.params(), (inputs, outputs), dtype))
            added[f"prompt.{i}.bias"] = vector(draw(rngs.params(), (outputs,), dtype))
        return added

    def embeddings(self, added: Mapping[str, nnx.Variable]) -> Float[Array, "M D"]:
        x = added[PROMPT][...]
        for i in range(3):
            x = x @ added[f"prompt.{i}.kernel"][...] + added[f"prompt.{i}.bias"][...]
            x = jax.nn.relu(x) if i < 2 else x
        return x


def _check(name: str, model: LM) -> None:
    """Raise ValueError for a sublayer that cannot begin documents from a state."""
    for block in model.pattern:
        for sublayer in block.sublayers.values():
            kind = type(sublayer).__name__
            if isinstance(sublayer, SoftmaxAttention):
                if not turns_alike(sublayer, model):
                    raise ValueError(
                        f"{name}: positions by {sublayer.position} depend on the length of the "
                        "text, and the virtual tokens stand before texts of all lengths; "
                        "PrefixTuning's have no positions"
                    )
            elif jax.tree.leaves(sublayer.init_state(model.dims, 1, 1)) and not isinstance(
                sublayer, Begins
            ):
                raise ValueError(
                    f"{name}: {kind} cannot begin a document from a state; a sublayer that takes "
                    "`Context.initial` and has a property `learned_state` can"
                )
