"""Where in a model its modules and parameters are."""

from typing import Any

import jax
from flax import nnx

from lcx.adapters.split import path_of
from lcx.model import LM


def found_in(tree: Any, kind: Any, under: str = "") -> dict[str, Any]:
    """The modules of a kind in a tree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, kind))
    found = {path_of(path): node for path, node in leaves if isinstance(node, kind)}
    return {f"{under}.{path}" if under else path: node for path, node in found.items()}


def norm_parameters(model: LM) -> frozenset[str]:
    """Paths of scales and biases of a model's norms."""
    tree = jax.eval_shape(model.init, jax.random.key(0))
    norms = found_in(tree, nnx.RMSNorm | nnx.LayerNorm)
    return frozenset(
        f"{path}.{name}"
        for path, norm in norms.items()
        for name in ("scale", "bias")
        if getattr(norm, name, None) is not None
    )
