"""Low-rank updates beside projections."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.adapters.finding import found_in, norm_parameters
from lcx.adapters.split import path_of
from lcx.dense import Axes, uniform, zeros
from lcx.model import LM, parameters
from lcx.ops import sums
from lcx.parallel.mesh import is_variable
from lcx.types import Leaves, Params

A, B = "lora_a", "lora_b"
"""What the two factors are called, beside the projection's own parameters."""


@dataclass(frozen=True)
class LoRA:
    """LoRA: x W + scale (x A) B, W frozen (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    A [in, r] is drawn from U(-1/sqrt(in), 1/sqrt(in)), as peft draws it, and B [r, out] is 0, so
    that the model begins as its base. With `norms` and `embeddings`, LongLoRA (Chen et al. 2023,
    arXiv:2309.12307, section 3.3).
    """

    rank: int = 8
    """r."""
    alpha: float | None = None
    """scale is alpha / r; None: twice the rank."""
    of: tuple[str, ...] = ("mixer",)
    """Which projections: by name (`q`), by sublayer (`mixer`, `channel`), or by any part of their
    path (`channel.up`, `blocks.0`)."""
    rank_stabilised: bool = False
    """rsLoRA: scale is alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
    norms: bool = False
    """Whether norms are trained, too, in full."""
    embeddings: bool = False
    """Whether the embedding is trained, too, in full, and the vectors of positions; tied, it is the
    head as well."""

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LoRA: rank must be at least 1, not {self.rank}")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"LoRA: alpha must be positive, not {self.alpha}")
        if not self.of:
            raise ValueError("LoRA: `of` names no projection; ('mixer',) are those of all mixers")

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied by."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def trained(self, model: LM) -> frozenset[str]:
        found = norm_parameters(model) if self.norms else frozenset()
        if self.embeddings:
            tables = (path for path in parameters(model) if path.startswith("positions."))
            found |= {"embed.embedding", *tables}
        return found

    def init(self, model: LM, base: Params, rngs: nnx.Rngs) -> Leaves:
        tree = jax.eval_shape(model.init, jax.random.key(0))
        added: Leaves = {}
        for path, layer in self._chosen(found_in(tree.blocks, nnx.Linear, "blocks")).items():
            *stack, inputs, outputs = layer.kernel.shape
            if self.rank > min(inputs, outputs):
                raise ValueError(
                    f"LoRA: rank {self.rank} is above that of {path}, {inputs} x {outputs}; "
                    f"take at most {min(inputs, outputs)}, or leave it out of `of`"
                )
            axes: Axes = layer.kernel.get_metadata().get("out_sharding") or (None, None)
            first, dtype = uniform(inputs**-0.5), layer.param_dtype
            shapes = {A: (*stack, inputs, self.rank), B: (*stack, self.rank, outputs)}
            cut = {A: (axes[0], None), B: (None, axes[1])}
            for name, draw in ((A, first), (B, zeros)):
                value = draw(rngs.params(), shapes[name], dtype)
                with nnx.use_eager_sharding(False):
                    made = nnx.LoRAParam(value, kind="matrix", out_sharding=cut[name])
                added[f"{path}.{name}"] = made
        return added

    def _chosen(self, there: Mapping[str, nnx.Linear]) -> dict[str, nnx.Linear]:
        """The projections that `of` names. Raises ValueError for a name that matches none."""
        found: dict[str, nnx.Linear] = {}
        for name in self.of:
            some = {p: layer for p, layer in there.items() if f".{name}." in f".{p}."}
            if not some:
                names = sorted({part for path in there for part in path.split(".")[2:]})
                near = get_close_matches(name, names, 1, cutoff=0.4)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ValueError(
                    f"LoRA: no projection is named {name!r}{hint} There are: {', '.join(names)}"
                )
            found |= some
        return dict(sorted(found.items()))

    def place(self, model: LM, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        def beside(path: Any, node: Any) -> Any:
            name = path_of(path)
            if f"{name}.{A}" not in added:
                return node
            return LowRank(node, added[f"{name}.{A}"], added[f"{name}.{B}"], self.scale)

        return jax.tree_util.tree_map_with_path(
            beside, params, is_leaf=lambda node: isinstance(node, nnx.Linear)
        )

    def merge(self, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        def summed(path: Any, leaf: nnx.Variable) -> nnx.Variable:
            name, _, last = path_of(path).rpartition(".")
            if last != "kernel" or f"{name}.{A}" not in added:
                return leaf
            a, b = added[f"{name}.{A}"][...], added[f"{name}.{B}"][...]
            return jax.tree.map(lambda kernel: merged_kernel(kernel, a, b, self.scale), leaf)

        return jax.tree_util.tree_map_with_path(summed, params, is_leaf=is_variable)


class LowRank(nnx.Module):
    """A frozen projection and its low-rank update: x W + scale (x A) B, and W's bias.

    In fp32 as one product with W + scale A B, of which no gradient is taken (`_one_product`). In
    bf16 that sum would be rounded, and small updates lost. Flax's `nnx.LoRA` has no scale, and
    contracts a gradient over [B, T] (decision 14).
    """

    def __init__(self, base: nnx.Linear, a: nnx.Variable, b: nnx.Variable, scale: float):
        self.base, self.lora_a, self.lora_b = base, a, b
        self.scale = scale

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n F"]:
        rows = x.reshape(-1, x.shape[-1])
        arrays = (rows, self.base.kernel[...], self.lora_a[...], self.lora_b[...])
        rows, kernel, a, b = self.base.promote_dtype(arrays, dtype=self.base.dtype)
        if rows.dtype == jnp.float32:
            y = _one_product(self.scale, rows, kernel, a, b)
        else:
            y = rows @ kernel + (self.scale * (rows @ a)) @ b
        if self.base.bias is not None:
            y += sums.spread(self.base.bias[...], y)
        return y.reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _one_product(
    scale: float,
    x: Float[Array, "n D"],
    kernel: Float[Array, "D F"],
    a: Float[Array, "D r"],
    b: Float[Array, "r F"],
) -> Float[Array, "n F"]:
    """x (W + scale A B). Its gradients by A and B go through [n r] alone, not through W's."""
    return x @ (kernel + (scale * a) @ b)


def _forward(scale, x, kernel, a, b):
    return _one_product(scale, x, kernel, a, b), (x, kernel, a, b)


def _backward(scale, saved, dy):
    x, kernel, a, b = saved
    thin = scale * (dy @ b.T)
    dx = dy @ (kernel + (scale * a) @ b).T
    # the kernel's is dropped by the compiler where nothing asks for it
    # by A: several times as fast as x.T @ thin on a CPU
    return dx, x.T @ dy, (thin.T @ x).T, (scale * (x @ a)).T @ dy


_one_product.defvjp(_forward, _backward)


@partial(jax.jit, static_argnames="scale")
def merged_kernel(
    kernel: Float[Array, "*n D F"],
    a: Float[Array, "*n D r"],
    b: Float[Array, "*n r F"],
    scale: float,
) -> Float[Array, "*n D F"]:
    """W + scale A B, computed in fp32 and rounded once."""
    wide = (one.astype(jnp.float32) for one in (a, b))
    update = jnp.matmul(*wide, precision="highest")
    return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
