"""Optimizers, by optax: a direction for every parameter; the rest is the same for all of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from lcx.dense import Kind
from lcx.parallel.mesh import is_variable
from lcx.types import Leaves, Params

Schedule = Literal["cosine", "wsd", "constant"]


@runtime_checkable
class Optimizer(Protocol):
    """How parameters follow their gradients."""

    def learning_rate(self, steps: int) -> optax.Schedule:
        """Learning rate by step, over a run of `steps`."""
        ...

    def transform(self, steps: int) -> optax.GradientTransformation:
        """The gradient transformation of a run of `steps`.

        Its state is made from parameters by `jax.tree.map`, so that it is cut over a mesh as they
        are. Training gives it parameters and gradients in fp32, whatever they are stored in
        (`in_fp32`), so its moments are fp32.
        """
        ...


@dataclass(frozen=True)
class Scheduled(ABC):
    """What optimizers share: schedule, clipping by global norm, decay of matrices and tables.

    What a parameter is, and whether its rate is another, stands in its metadata (`lcx.dense.Kind`).
    """

    peak: float = 2e-3
    """Learning rate after warm-up."""
    schedule: Schedule = "cosine"
    """cosine: half a cosine to `final`; wsd: constant, then linear over the last fifth (Hu et al.
    2024); constant."""
    warmup: int = 50
    """Steps of linear warm-up; at most a tenth of all steps."""
    final: float = 0.1
    """Last learning rate, as a fraction of the peak."""
    weight_decay: float = 0.1
    """Decoupled: times the learning rate, and the parameter."""
    clip: float = 1.0
    """The largest norm of all gradients together."""

    def __post_init__(self):
        self._positive("peak", "clip")
        if self.warmup < 0 or self.weight_decay < 0 or not 0 <= self.final <= 1:
            raise ValueError(
                f"{type(self).__name__}: warmup and weight_decay cannot be negative, final is in "
                f"[0, 1]; not {self.warmup}, {self.weight_decay}, {self.final}"
            )

    def _positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be positive, not {getattr(self, name)}"
                )

    def _fractions(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{type(self).__name__}: {name} must lie in [0, 1), not {getattr(self, name)}"
                )

    def learning_rate(self, steps: int) -> optax.Schedule:
        warmup = min(self.warmup, steps // 10)
        rise = optax.linear_schedule(self.peak / (warmup + 1), self.peak, warmup)
        rest = max(steps - warmup, 1)
        match self.schedule:
            case "cosine":
                after = optax.cosine_decay_schedule(self.peak, rest, self.final)
            case "wsd":
                flat = rest - rest // 5
                after = optax.linear_schedule(
                    self.peak, self.final * self.peak, max(rest // 5, 1), flat
                )
            case "constant":
                after = optax.constant_schedule(self.peak)
        return optax.join_schedules([rise, after], [warmup])

    def transform(self, steps: int) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            self.direction(),
            optax.add_decayed_weights(self.weight_decay, mask=decayed),
            optax.stateless(lambda updates, _: at_their_rates(updates)),
            optax.scale_by_learning_rate(self.learning_rate(steps)),
        )

    @abstractmethod
    def direction(self) -> optax.GradientTransformation:
        """From gradients to updates, before decay and learning rate."""


@dataclass(frozen=True)
class AdamW(Scheduled):
    """AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        self._positive("eps")
        self._fractions("b1", "b2")

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclass(frozen=True)
class Lion(Scheduled):
    """Lion: the sign of a momentum (Chen et al. 2023, arXiv:2302.06675).

    Every update has size 1, so the peak is some times below AdamW's, and the decay as much above.
    """

    peak: float = 1e-3
    weight_decay: float = 0.3
    b1: float = 0.9
    b2: float = 0.99

    def __post_init__(self):
        super().__post_init__()
        self._fractions("b1", "b2")

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@dataclass(frozen=True)
class Muon(Scheduled):
    """Muon: matrices move along their momentum made orthogonal (Jordan et al. 2024).

    As in Moonlight (Liu et al. 2025, arXiv:2502.16982), section 2.2: matrices decay as under AdamW,
    and an update has the RMS that AdamW's would have, so one learning rate serves all parameters.
    Stacked matrices are taken one by one; tables and vectors are left to AdamW.
    """

    peak: float = 1e-2
    momentum: float = 0.95
    """Nesterov's."""
    rms: float = 0.2
    """Root mean square of a matrix's update, times the learning rate."""
    b1: float = 0.9
    """AdamW's, like b2 and eps."""
    b2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        self._positive("rms", "eps")
        self._fractions("momentum", "b1", "b2")

    def direction(self) -> optax.GradientTransformation:
        def to_rms(update: Any) -> Any:
            # an orthogonal m x n matrix has an RMS of max(m, n)^-0.5
            return self.rms * max(update.shape[-2:]) ** 0.5 * orthogonalised(update)

        along = optax.stateless_with_tree_map(lambda update, _: to_rms(update))
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        return optax.partition(
            {
                "matrix": optax.chain(optax.trace(self.momentum, nesterov=True), along),
                "table": adam,
                "vector": adam,
            },
            kinds,
        )


OPTIMIZERS: dict[str, type] = {c.__name__: c for c in (AdamW, Muon, Lion)}


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5, which bring singular values near 1 fast (Jordan et al. 2024)."""


def orthogonalised(x: Float[Array, "... m n"]) -> Float[Array, "... m n"]:
    """About U V^T of each matrix U S V^T, by five Newton-Schulz steps: S comes to lie near 1.

    One matrix after the other on a CPU, where products of batches are slower.
    """
    stack = x.reshape(-1, *x.shape[-2:])
    done = jax.lax.platform_dependent(
        stack, cpu=partial(jax.lax.map, _newton_schulz), default=jax.vmap(_newton_schulz)
    )
    return done.reshape(x.shape)


def _newton_schulz(x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """Five times a x + b (x x^T) x + c (x x^T)^2 x, from x of norm 1."""
    if x.shape[0] > x.shape[1]:
        return _newton_schulz(x.T).T
    a, b, c = NEWTON_SCHULZ
    x = x / (jnp.linalg.norm(x) + 1e-8)
    if 2 * x.shape[1] < 3 * x.shape[0]:
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x
    # each step multiplies x by a polynomial of its Gram matrix, which is cheaper to follow alone
    one, gram, factors = jnp.eye(x.shape[0], dtype=x.dtype), x @ x.T, []
    for _ in range(5):
        factors.append(a * one + b * gram + c * gram @ gram)
        gram = factors[-1] @ gram @ factors[-1]
    return reduce(jnp.matmul, factors) @ x  # they commute


def kinds(params: Params | Leaves) -> Params | Leaves:
    """The `lcx.dense.Kind` of each array. Raises ValueError where a parameter does not say it."""

    def kind(path: Any, leaf: Any) -> Any:
        named = leaf.get_metadata().get("kind") if is_variable(leaf) else None
        if named not in get_args(Kind):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"the parameter {name} does not say what it is to optimizers; make it by `linear`, "
                "`matrix` or `vector` of lcx.dense, or give it the metadata kind='table'"
            )
        return jax.tree.map(lambda _: named, leaf)

    return jax.tree_util.tree_map_with_path(kind, params, is_leaf=is_variable)


def decayed(params: Params | Leaves) -> Params | Leaves:
    """True at matrices and tables."""
    return jax.tree.map(lambda kind: kind != "vector", kinds(params))


def at_their_rates(updates: Any) -> Any:
    """Updates, times the rate of parameters that learn faster or slower than the others."""

    def scaled(leaf: nnx.Variable) -> nnx.Variable:
        rate = leaf.get_metadata().get("rate", 1.0)
        return leaf if rate == 1 else jax.tree.map(lambda u: rate * u, leaf)

    return jax.tree.map(scaled, updates, is_leaf=is_variable)


def in_fp32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same with moments and arithmetic in fp32, whatever dtype parameters are stored in."""

    def cast(tree: Any) -> Any:
        return optax.tree.cast(tree, jnp.float32)

    return optax.GradientTransformation(
        lambda params: inner.init(cast(params)),
        lambda updates, state, params=None: inner.update(cast(updates), state, cast(params)),
    )
