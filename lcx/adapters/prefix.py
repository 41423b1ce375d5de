"""Learned keys and values before every document."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.adapters.beginning import (
    NotMerged,
    after_tokens,
    check_sizes,
    drawn_embeddings,
    mixer_names,
    with_beginning,
)
from lcx.dense import matrix, normal, uniform, vector
from lcx.mixers import SoftmaxAttention
from lcx.mixers.softmax_attention import VirtualKeys
from lcx.model import LM
from lcx.types import Leaves, Params

KEYS, VALUES = "mixer_initial.k", "mixer_initial.v"


@dataclass(frozen=True)
class PrefixTuning(NotMerged):
    """Learned keys and values of virtual tokens, in each layer of softmax attention.

    Li and Liang 2021 (arXiv:2101.00190), section 4; P-tuning v2. Keys enter as they are learned,
    without positions; the document's own tokens stand at positions from `tokens` on, as peft has
    it. Every token sees all of them, under any sparsity. At first they are those that the base has
    for tokens drawn from its vocabulary (section 7.4 of the paper: far better than noise). Layers
    of other mixers, in a hybrid, stay as they are; `InitialState` is their like.
    """

    tokens: int = 20
    """M, virtual tokens."""
    hidden: int | None = None
    """Train vectors [M, D] through a network, Linear, tanh, Linear, of so many hidden features, in
    place of keys and values themselves (section 4.3); first values are random then."""

    def __post_init__(self):
        check_sizes(self)

    def trained(self, model: LM) -> frozenset[str]:
        if not _attending(model):
            raise ValueError(
                f"PrefixTuning: {mixer_names(model)} has no keys to stand before a document's; "
                "SoftmaxAttention has; for recurrences there is InitialState"
            )
        return frozenset()

    def init(self, model: LM, base: Params, rngs: nnx.Rngs) -> Leaves:
        dtype = jnp.dtype(model.policy.params)
        drawn = after_tokens(model, base, drawn_embeddings(base, self.tokens, rngs))
        keys: dict[int, VirtualKeys] = {p: drawn[p, "mixer"] for p in _attending(model)}
        if self.hidden is None:
            return {
                f"blocks.{place}.{name}": vector(value[:, 0].astype(dtype))
                for place, there in keys.items()
                for name, value in ((KEYS, there.k), (VALUES, there.v))
            }
        D, H, repeats = model.width, self.hidden, model.repeats

        def dense(inputs: int, *shape: int) -> tuple[nnx.Param, nnx.Param]:
            """As torch draws them."""
            draw = uniform(inputs**-0.5)
            *stack, _, outputs = shape
            bias = draw(rngs.params(), (*stack, outputs), dtype)
            return matrix(draw(rngs.params(), shape, dtype)), vector(bias)

        added: Leaves = {
            "prefix.embedding": vector(normal(1.0)(rngs.params(), (self.tokens, D), dtype))
        }
        added |= zip(("prefix.kernel", "prefix.bias"), dense(D, D, H), strict=True)
        for place, there in keys.items():
            for name, a in ((KEYS, there.k), (VALUES, there.v)):
                under, outputs = f"blocks.{place}.{name}", a.shape[3] * a.shape[4]
                names = f"{under}_kernel", f"{under}_bias"
                added |= zip(names, dense(H, repeats, H, outputs), strict=True)
        return added

    def place(self, model: LM, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        states = {(place, "mixer"): there for place, there in self.keys(model, added).items()}
        return with_beginning(params, states, self.tokens, added)

    def keys(self, model: LM, added: Mapping[str, nnx.Variable]) -> dict[int, VirtualKeys]:
        """What stands before documents, by the place of the block; [L 1 M G K]."""
        if self.hidden is None:
            made = {path: leaf[...] for path, leaf in added.items()}
        else:
            made = self._through_network(model, added)
        return {
            place: VirtualKeys(*(made[f"blocks.{place}.{n}"][:, None] for n in (KEYS, VALUES)))
            for place in _attending(model)
        }

    def _through_network(
        self, model: LM, added: Mapping[str, nnx.Variable]
    ) -> dict[str, Float[Array, "L M G K"]]:
        own = {path: leaf[...] for path, leaf in added.items()}
        inside = jnp.tanh(own["prefix.embedding"] @ own["prefix.kernel"] + own["prefix.bias"])
        made = {}
        for place, mixer in _attending(model).items():
            for name in (KEYS, VALUES):
                under = f"blocks.{place}.{name}"
                rows = inside @ own[f"{under}_kernel"] + own[f"{under}_bias"][:, None]
                made[under] = rows.reshape(*rows.shape[:2], mixer.groups, -1)
        return made


def _attending(model: LM) -> dict[int, SoftmaxAttention]:
    """Blocks with softmax attention, by place."""
    mixers = {place: block.mixer for place, block in enumerate(model.pattern)}
    return {place: m for place, m in mixers.items() if isinstance(m, SoftmaxAttention)}
