"""Devices in a mesh, and which axis of which array is cut along which axis of the mesh."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from lcx.parallel.seqpar import AXIS, Shards

RULES: dict[str | None, str | None] = {
    "embed": "fsdp",
    "vocab": "model",
    "heads": "model",
    "kv_heads": None,  # few: one copy on each shard of the query heads
    "mlp": "model",
    "expert": "expert",
    None: None,
}
"""From the logical name of a weight's axis to the mesh axis that it is cut along."""

ROWS = ("data", "fsdp", "expert")
"""The axes that a batch's rows are cut along: all over which a weight's gradients are summed."""

BATCH = PartitionSpec(ROWS, AXIS)
"""Batches [B, T]: rows over `ROWS`, each row's tokens in contiguous pieces over "seq"."""


@dataclass(frozen=True)
class Mesh:
    """How many ways the work is cut. It changes where an experiment runs, and no result.

    data: batches; weights are copied. fsdp: batches and weights. seq: every row, in contiguous
    pieces. model: heads and feed-forward layers. expert: batches, and the experts of layers that
    have some.
    """

    data: int = 1
    fsdp: int = 1
    seq: int = 1
    model: int = 1
    expert: int = 1

    def __post_init__(self):
        for name, size in asdict(self).items():
            if size < 1:
                raise ValueError(f"mesh.{name} must be at least 1, not {size}")

    @property
    def devices(self) -> int:
        """How many devices the mesh takes."""
        return math.prod(asdict(self).values())

    @property
    def rows(self) -> int:
        """How many ways the rows of a batch are cut."""
        return self.data * self.fsdp * self.expert

    @property
    def shards(self) -> Shards | None:
        """How many ways each row is cut; None: not at all."""
        return Shards(self.seq) if self.seq > 1 else None

    def check(self, available: int, processes: int = 1) -> None:
        """Raise ValueError where the mesh cannot be laid on so many devices."""
        axes = " x ".join(f"{name} {size}" for name, size in asdict(self).items() if size > 1)
        takes = f"{axes or 'a single device'} takes {self.devices} of {available} devices"
        if self.devices > available:
            raise ValueError(f"{takes}: there are too few")
        if processes > 1 and self.devices != available:
            data = self.data_for(available)
            fix = "" if data is None else f", so that each has a part; mesh.data={data} would"
            raise ValueError(f"{takes}: with {processes} processes it has to take all of them{fix}")

    def data_for(self, devices: int) -> int | None:
        """The `data` with which the mesh takes so many devices, if there is one."""
        data, over = divmod(devices * self.data, self.devices)
        return None if over else data


def make_mesh(mesh: Mesh) -> jax.sharding.Mesh:
    """The mesh on the first devices there are. Raises ValueError where there are too few.

    Where devices come in groups with fast links inside (the slices of a TPU pod, or the hosts of
    GPUs and CPUs), the outer axes go from group to group: data before fsdp before the others.
    """
    available = jax.devices()
    mesh.check(len(available), jax.process_count())
    sizes = asdict(mesh)
    axis_types = (AxisType.Auto,) * len(sizes)
    devices = available[: mesh.devices]
    by_process = devices[0].platform != "tpu"
    groups = len({d.process_index if by_process else getattr(d, "slice_index", 0) for d in devices})
    if groups == 1:
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types, devices=devices)
    between = _between(sizes, groups)
    within = [size // between[name] for name, size in sizes.items()]
    grid = mesh_utils.create_hybrid_device_mesh(
        within, list(between.values()), devices, process_is_granule=by_process
    )
    return jax.sharding.Mesh(grid, tuple(sizes), axis_types=axis_types)


def _between(sizes: dict[str, int], groups: int) -> dict[str, int]:
    """How often each axis steps from one group of devices to another."""
    between, left = dict.fromkeys(sizes, 1), groups
    for name in (*ROWS, AXIS, "model"):  # the less an axis has to say to itself, the further out
        between[name] = math.gcd(sizes[name], left)
        left //= between[name]
    if left > 1:
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"the mesh {shown} cannot be laid evenly over {groups} groups of devices")
    return between


def place(array: Any, where: jax.sharding.Sharding) -> jax.Array:
    """An array on the devices of a mesh, from what gives any part of it when it is indexed.

    Every process is given the whole, and looks at the parts of its own devices alone.
    """
    return jax.make_array_from_callback(array.shape, where, lambda part: array[part])


def by_rows(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """x, laid out as batches are: cut along its rows and along no feature.

    Without a word the compiler may cut the stream between layers as it finds weights cut along
    "fsdp", and then every device works on all rows. Nothing where no mesh with such axes is set.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(ROWS) <= set(mesh.axis_names):
        return x
    ways = math.prod(mesh.shape[name] for name in ROWS)
    if ways == 1 or x.shape[0] % ways:
        return x
    tokens = None if AXIS in mesh.manual_axes else AXIS
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS, tokens))


def shardings(tree: Any, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Any:
    """The sharding of each array of a (real or abstract) tree, from its parameters' axis names.

    Trees made from parameters, such as optimizer moments, keep the names. Leading axes without a
    name (stacked layers) and arrays without names are not cut, nor is an axis that the mesh does
    not divide. Raises ValueError for an array that has lost an axis of its parameter, where that
    would have been cut.
    """

    def sharding(leaf: Any) -> Any:
        names = leaf.get_metadata().get("out_sharding") or () if is_variable(leaf) else ()

        def of(array: Any) -> NamedSharding:
            if array.ndim < len(names):
                if any(mesh.shape[RULES[name]] > 1 for name in names if RULES[name]):
                    raise ValueError(
                        f"an array of shape {array.shape} was made from a parameter whose axes "
                        f"{names} the mesh cuts, and is not of its shape; take a mesh that cuts "
                        "data and seq alone, or an optimizer whose moments are as its parameters"
                    )
                return NamedSharding(mesh, PartitionSpec())
            axes = (None,) * (array.ndim - len(names)) + tuple(RULES[name] for name in names)
            fits = zip(array.shape, axes, strict=True)
            cut = (a if a and size % mesh.shape[a] == 0 else None for size, a in fits)
            return NamedSharding(mesh, PartitionSpec(*cut))

        return jax.tree.map(of, leaf)

    return jax.tree.map(sharding, tree, is_leaf=is_variable)


def is_variable(leaf: Any) -> bool:
    """Whether this node of a tree is a parameter, or was made from one, with its metadata."""
    return isinstance(leaf, nnx.Variable)
