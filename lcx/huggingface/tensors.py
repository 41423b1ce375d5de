"""Parameters from published tensors, and tensors from parameters, by a family's rules."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lcx.huggingface.family import Family, Rule, rules
from lcx.model import LM, parameters
from lcx.types import Params

Index = tuple[slice, ...]
Read = Callable[[str, Index | None], np.ndarray]
"""A tensor by its name, whole or the part at an index."""


class Tensor(NamedTuple):
    """One published tensor of one model."""

    name: str
    rule: Rule
    parts: tuple[tuple[str, int | None], ...]
    """The parameters in it, by path, and which of their stacked layers."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the parts."""

    @property
    def turned(self) -> bool:
        """Whether it is the transpose of its parts."""
        said = self.rule.turned
        return self.parts[0][0].endswith(".kernel") if said is None else said

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        *first, _ = self.shapes[0]
        shape = (*first, sum(shape[-1] for shape in self.shapes))
        shape = shape[::-1] if self.turned else shape
        return shape if self.rule.shape is None else _filled(self.rule.shape, math.prod(shape))

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The parts of the tensor."""
        first = self.shapes[0][:-1]
        widths = [shape[-1] for shape in self.shapes]
        whole = (*first, sum(widths))
        tensor = tensor.reshape(whole[::-1]).T if self.turned else tensor.reshape(whole)
        if len(widths) == 1:
            return [tensor]
        groups = self.rule.groups
        ends = np.cumsum(widths)[:-1] // groups
        apart = np.split(tensor.reshape(*first, groups, -1), ends, axis=-1)
        return [part.reshape(*first, -1) for part in apart]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor of its parts."""
        first, groups = self.shapes[0][:-1], self.rule.groups
        if len(parts) == 1:
            tensor = parts[0]
        else:
            apart = [part.reshape(*first, groups, -1) for part in parts]
            tensor = np.concatenate(apart, axis=-1).reshape(*first, -1)
        tensor = tensor.T if self.turned else tensor
        return np.ascontiguousarray(tensor.reshape(self.shape))

    def part(self, read: Read, which: int, index: Index) -> np.ndarray:
        """What is at an index of one of its parts; reads no more than that where it can."""
        if len(self.parts) == 1 and self.rule.shape is None:
            part = read(self.name, index[::-1] if self.turned else index)
            return part.T if self.turned else part
        return self.split(read(self.name, None))[which][index]


def tensors(family: Family, model: LM) -> list[Tensor]:
    """All of a model's. Raises ValueError where a parameter has no place, or two."""
    shapes = {path: leaf.shape for path, leaf in parameters(model).items()}
    found, places = [], len(model.pattern)

    def add(rule: Rule, name: str, paths: list[str], layer: int | None) -> None:
        if absent := [path for path in paths if path not in shapes]:
            raise ValueError(f"{name}: the model has no parameter {absent[0]}")
        stacked = 0 if layer is None else 1
        parts = tuple((path, layer) for path in paths)
        found.append(Tensor(name, rule, parts, tuple(shapes[p][stacked:] for p in paths)))

    head = {} if model.tied else {"head.kernel": family.heads[0]}
    for rule in (*family.around(model), *rules(head)):
        add(rule, rule.tensor, list(rule.leaves), None)
    for place, block in enumerate(model.pattern):
        for rule in family.within(model, block):
            paths = [f"blocks.{place}.{leaf}" for leaf in rule.leaves]
            for layer in range(model.repeats):
                add(rule, rule.tensor.format(layer * places + place), paths, layer)
    held = [part for tensor in found for part in tensor.parts]
    wanted = {
        (path, layer)
        for path, shape in shapes.items()
        for layer in (range(shape[0]) if path.startswith("blocks.") else [None])
    }
    if lacking := sorted({path for path, _ in wanted.symmetric_difference(held)}):
        raise ValueError(f"no published tensor is the parameter {lacking[0]}")
    if len(held) != len(set(held)):
        twice = next(path for path, layer in held if held.count((path, layer)) > 1)
        raise ValueError(f"two published tensors are the parameter {twice}")
    return found


def read_parameters(family: Family, model: LM, read: Read, placed: Any = None) -> Params:
    """The tree that `model.init` makes, in the model's dtype.

    placed: a tree of shardings; each device is given its part alone, and no more than that is read
    where a tensor is one parameter. None: whole, on the default device.
    """
    where = {
        part: (tensor, which)
        for tensor in tensors(family, model)
        for which, part in enumerate(tensor.parts)
    }

    def fill(path: Any, like: Any, sharding: Any = None) -> jax.Array:
        name, dtype = _path(path), like.dtype

        def at(index: Any) -> np.ndarray:
            if not name.startswith("blocks."):
                tensor, which = where[name, None]
                return tensor.part(read, which, index).astype(dtype)
            layers = range(like.shape[0])[index[0]]
            found = (where[name, layer] for layer in layers)
            return np.stack([t.part(read, which, index[1:]).astype(dtype) for t, which in found])

        if sharding is None:
            return jax.numpy.asarray(at((slice(None),) * len(like.shape)))
        return jax.make_array_from_callback(like.shape, sharding, at)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    trees = (shapes,) if placed is None else (shapes, placed)
    return jax.tree_util.tree_map_with_path(fill, *trees)


def written(family: Family, model: LM, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of a model by name, one after the other."""
    leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for tensor in tensors(family, model):
        parts = (leaves[path] if n is None else leaves[path][n] for path, n in tensor.parts)
        yield tensor.name, tensor.join([np.asarray(part) for part in parts])


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _filled(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The shape with its -1, where it has one, replaced by what follows from the size."""
    known = -math.prod(shape) if -1 in shape else 1
    return tuple(size // known if n == -1 else n for n in shape)
