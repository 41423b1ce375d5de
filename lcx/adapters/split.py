"""A model's parameters in two: those that are trained, and those that are frozen."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key

from lcx.adapters.protocol import Tuning
from lcx.model import LM
from lcx.parallel.mesh import is_variable
from lcx.types import Leaves, Params


def by_path(params: Params) -> Leaves:
    """Each parameter of a tree, by path."""
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable)
    return {path_of(path): leaf for path, leaf in found}


def path_of(path: Any) -> str:
    """A place in a tree as text: `blocks.0.mixer.q`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def begin(tune: Tuning, model: LM, base: Params, key: Key[Array, ""]) -> Leaves:
    """What is trained, before the first step: of the base and of what the method adds."""
    own = by_path(base)
    trained = {path: own[path] for path in sorted(tune.trained(model))}
    return trained | tune.init(model, base, nnx.Rngs(key))


def frozen(tune: Tuning, model: LM, base: Params) -> Leaves:
    """What is not trained of the base."""
    trained = tune.trained(model)
    return {path: leaf for path, leaf in by_path(base).items() if path not in trained}


def tuned(tune: Tuning, model: LM, trained: Leaves, frozen: Leaves) -> Params:
    """The whole tree again, with what the method adds in its place."""
    with model.policy.precise():
        return tune.place(model, *_apart(model, trained, frozen))


def merged(tune: Tuning, model: LM, trained: Leaves, frozen: Leaves) -> Params:
    """The plain model that computes what the tuned one does. Raises ValueError: there is none."""
    return tune.merge(*_apart(model, trained, frozen))


def shapes(tune: Tuning, model: LM) -> Leaves:
    """What is trained, abstract. Raises ValueError where the method does not fit the model."""

    def made(key: Key[Array, ""]) -> Leaves:
        return begin(tune, model, model.init(key), key)

    return jax.eval_shape(made, jax.random.key(0))


def check_merges(tune: Tuning, model: LM) -> None:
    """Raise ValueError where no plain model computes what the tuned one does."""

    def made(key: Key[Array, ""]) -> Params:
        base = model.init(key)
        return merged(tune, model, begin(tune, model, base, key), frozen(tune, model, base))

    jax.eval_shape(made, jax.random.key(0))


def _apart(model: LM, trained: Leaves, frozen: Leaves) -> tuple[Params, Mapping[str, nnx.Variable]]:
    """The model's own tree, and what is added to it."""
    paths, structure = _skeleton(model)
    pool = frozen | trained
    added = {path: leaf for path, leaf in trained.items() if path not in paths}
    return jax.tree.unflatten(structure, [pool[path] for path in paths]), added


@cache
def _skeleton(model: LM) -> tuple[dict[str, None], Any]:
    """Paths of a model's parameters, in order; and the structure of their tree."""
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    structure = jax.tree.structure(abstract, is_leaf=is_variable)
    return dict.fromkeys(by_path(abstract)), structure
