"""AdamW with a schedule and clipping, by optax."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from lcx.types import Params

Schedule = Literal["cosine", "wsd", "constant"]


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019) after clipping by global norm; decays matrices only."""

    peak: float = 2e-3
    """Learning rate after warm-up."""
    schedule: Schedule = "cosine"
    """cosine: half a cosine to `final`; wsd: constant, then linear over the last fifth (Hu et al.
    2024); constant."""
    warmup: int = 50
    """Steps of linear warm-up; at most a tenth of all steps."""
    final: float = 0.1
    """Last learning rate, as a fraction of the peak."""
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self):
        for name in ("peak", "eps", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"AdamW: {name} must be positive, not {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"AdamW: {name} must lie in [0, 1), not {getattr(self, name)}")
        if self.warmup < 0 or self.weight_decay < 0 or not 0 <= self.final <= 1:
            raise ValueError(
                "AdamW: warmup and weight_decay cannot be negative, final is in [0, 1]"
            )

    def learning_rate(self, steps: int) -> optax.Schedule:
        """Learning rate by step, over a run of `steps`."""
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
        """The gradient transformation of a run of `steps`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(
                self.learning_rate(steps),
                self.b1,
                self.b2,
                self.eps,
                weight_decay=self.weight_decay,
                mask=matrices,
            ),
        )


def matrices(params: Params) -> Params:
    """True at the weights of projections and embeddings; False at norms, decays and mixes."""

    def is_matrix(path, _):
        return any(getattr(key, "name", None) in ("kernel", "embedding") for key in path)

    return jax.tree_util.tree_map_with_path(is_matrix, params)
