"""Devices in a mesh, and which axis of which array is cut along which axis of the mesh."""

from dataclasses import asdict, dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

RULES: dict[str | None, str | None] = {
    "embed": "fsdp",
    "vocab": "model",
    "heads": "model",
    "kv_heads": None,  # few: one copy on each shard of the query heads
    "mlp": "model",
    None: None,
}
"""From the logical name of a weight's axis to the mesh axis that it is cut along."""

BATCH = PartitionSpec(("data", "fsdp"))
"""Batches are cut along both axes over which a weight's gradients are summed."""


@dataclass(frozen=True)
class Mesh:
    """How many ways the work is cut: copies of the model, cuts of its weights, cuts of its layers.

    data: batches, weights copied. fsdp: batches and weights. model: heads and feed-forward.
    """

    data: int = 1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self):
        for name, size in asdict(self).items():
            if size < 1:
                raise ValueError(f"mesh.{name} must be at least 1, not {size}")

    @property
    def devices(self) -> int:
        """How many devices the mesh takes."""
        return self.data * self.fsdp * self.model


def make_mesh(mesh: Mesh) -> jax.sharding.Mesh:
    """The mesh on the first devices there are. Raises ValueError where there are too few."""
    available = jax.devices()
    if mesh.devices > len(available):
        raise ValueError(
            f"the mesh {asdict(mesh)} takes {mesh.devices} devices; "
            f"{len(available)} {available[0].platform} device(s) are here"
        )
    sizes = asdict(mesh)
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=available[: mesh.devices],
    )


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """The sharding of each array of a (real or abstract) tree, from its parameters' axis names.

    Trees made from parameters, such as optimizer moments, keep the names. Leading axes without a
    name (stacked layers) and arrays without names are not cut, nor is an axis that the mesh does
    not divide.
    """

    def sharding(leaf: Any) -> Any:
        names = leaf.get_metadata().get("out_sharding") or () if _is_variable(leaf) else ()

        def of(array: Any) -> NamedSharding:
            axes = (None,) * (array.ndim - len(names)) + tuple(RULES[name] for name in names)
            fits = zip(array.shape, axes, strict=True)
            cut = (a if a and size % mesh.shape[a] == 0 else None for size, a in fits)
            return NamedSharding(mesh, PartitionSpec(*cut))

        return jax.tree.map(of, leaf)

    return jax.tree.map(sharding, tree, is_leaf=_is_variable)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
