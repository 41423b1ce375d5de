"""What a variant takes, by its specification alone: nothing is trained, no array is made."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypedDict

import jax

from lcx.adapters import HasVirtualTokens, Tuning
from lcx.adapters.split import shapes
from lcx.mixers import SoftmaxAttention
from lcx.model import LM, count_parameters, parameters
from lcx.types import CountsFlops, Leaves, tree_bytes
from lcx.wording import listed

UNCOUNTED = (
    "{mixers}: what mixing takes is not known, so FLOPs are left out (–). State it by a method "
    "mixing_flops(self, dims, length) -> float: FLOPs per token of the forward pass, beyond two "
    "for each parameter, on average over a text of `length` tokens."
)
"""How costs that are missing are stated."""


class Cost(TypedDict):
    """What a variant takes, as far as its specification tells."""

    parameters: int
    """Of the model."""
    tuned_parameters: int | None
    """Those that are trained, the model's own and added ones, of a variant that trains few; None:
    all are."""
    training_flops: float | None
    """Per token of training, forward and backward; a multiply-add counts as two. None: unknown."""
    uncounted: list[str]
    """The mixers that do not tell, by class: why training_flops is None."""
    state_bytes: dict[str, int]
    """What decoding one text keeps, by its length in tokens (as JSON has it: a string)."""


def cost_of(
    model: LM,
    train_len: int | None,
    lengths: Sequence[int],
    tune: Tuning | None = None,
    teacher: LM | None = None,
) -> Cost:
    """Parameters, training FLOPs per token, and the state of decoding a text of each length.

    train_len: tokens a row of training; None: not known, and so are its FLOPs.
    """
    return Cost(
        parameters=count_parameters(model),
        tuned_parameters=None if tune is None else _numbers(shapes(tune, model)),
        training_flops=None
        if train_len is None
        else training_flops(model, train_len, tune, teacher),
        uncounted=uncounted(*filter(None, (model, teacher))),
        state_bytes={str(n): state_bytes(model, n) for n in lengths},
    )


def uncounted(*models: LM) -> list[str]:
    """The classes of mixers that do not tell what mixing takes."""
    mixers = (block.mixer for model in models for block in model.pattern)
    return list(dict.fromkeys(type(m).__name__ for m in mixers if not isinstance(m, CountsFlops)))


def uncounted_note(names: Iterable[str]) -> str | None:
    """How the costs of these mixers would be stated; None where there are none."""
    mixers = list(dict.fromkeys(names))
    return UNCOUNTED.format(mixers=listed(mixers)) if mixers else None


def training_flops(
    model: LM, length: int, tune: Tuning | None = None, teacher: LM | None = None
) -> float | None:
    """FLOPs per token of a training step on texts of `length` tokens; a multiply-add is two.

    Every parameter takes part in one multiply-add a token, except the embedding, which is looked
    up (as a tied head, it does); to these the mixers add what mixing takes. The backward pass costs
    twice the forward pass (Kaplan et al. 2020, section 2.1). Counted from the formulas: chunked and
    blockwise forms do more, where that is faster. None where a mixer does not tell. tune: frozen
    parameters take no gradient, which is a third of theirs; of added ones, those beside projections
    count, and the keys of virtual tokens, not what is done once a step. teacher: its forward pass
    is added, without what tuning has added to it.
    """
    asked = 0.0 if teacher is None else training_flops(teacher, length)
    if asked is None:
        return None
    lookup = 0 if model.tied else model.vocabulary * model.width
    weights = 2.0 * (count_parameters(model) - lookup)
    frozen, added = (0, 0) if tune is None else _tuned(tune, model)
    virtual = tune.tokens if isinstance(tune, HasVirtualTokens) else 0
    mixing = 0.0
    for block in model.pattern:
        if not isinstance(block.mixer, CountsFlops):
            return None  # `uncounted` names it
        mixing += model.repeats * block.mixer.mixing_flops(model.dims, length)
        if isinstance(block.mixer, SoftmaxAttention):
            mixing += model.repeats * virtual * block.mixer.key_flops(model.dims)
    return 3 * (weights + mixing + 2.0 * added) - 2.0 * frozen + asked / 3


def _tuned(tune: Tuning, model: LM) -> tuple[int, int]:
    """How many parameters that take part in a token's multiply-adds are frozen, and are added."""
    own, trained = parameters(model), shapes(tune, model)
    if not model.tied:
        own.pop("embed.embedding")
    inside = parameters(model).keys()
    return (
        _numbers({path: leaf for path, leaf in own.items() if path not in trained}),
        _numbers({p: leaf for p, leaf in trained.items() if p not in inside and _each_token(p)}),
    )


def _each_token(path: str) -> bool:
    """Whether an added parameter meets every token: it is beside one that does."""
    return path.startswith("blocks.") and "_initial." not in path


def _numbers(leaves: Leaves) -> int:
    return sum(math.prod(leaf.shape) for leaf in leaves.values())


def state_bytes(model: LM, length: int) -> int:
    """Bytes that decoding one text of `length` tokens keeps."""
    return tree_bytes(jax.eval_shape(partial(model.init_state, 1, length)))
