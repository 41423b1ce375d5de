"""Which predictions after an author's words are words that stood there shortly before."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lcx.protocols.base import Ids
from lcx.protocols.measures import Measure
from lcx.protocols.same_targets import SameTargets
from lcx.repetition.measures import among_the_last


@dataclass(frozen=True)
class TokenRepetition(SameTargets):
    """`SameTargets`, of which is measured how often the likeliest token stood there shortly before.

    rep/l and wrep/l of Welleck et al. 2019 (arXiv:1908.04319), by context length, and the author's
    own rep/l beside them. The model reads an author's text, not its own.
    """

    last: int = 32
    """l: how many tokens before a target are looked at. BOS is none."""

    def __post_init__(self):
        super().__post_init__()
        if self.last < 1:
            raise ValueError(f"TokenRepetition: last must be at least 1, not {self.last}")
        if self.unit == "bytes":
            raise ValueError("TokenRepetition: contexts count tokens, as `last` does, not bytes")
        if self.last > 3 * self.contexts[0] // 4:
            raise ValueError(
                f"TokenRepetition: a context of {self.contexts[0]} tokens holds at least "
                f"{3 * self.contexts[0] // 4} before each target, fewer than last={self.last}: "
                "take longer contexts"
            )

    @property
    def measures(self) -> tuple[Measure, ...]:
        last = self.last
        likeliest = "the share of targets in whose place the likeliest token is among the"
        return (
            _share(
                f"wrep/{last}",
                "wrep",
                f"wrep/{last} is {likeliest} {last} tokens before it, and is wrong",
            ),
            _share(
                f"rep/{last}",
                "rep",
                f"rep/{last} is {likeliest} {last} tokens before it, right or wrong",
            ),
            _share(
                f"rep/{last} of the author",
                "rep_of_author",
                f"The share of targets that are themselves among the {last} tokens before them",
            ),
        )

    @property
    def words(self) -> str:
        return (
            f"{super().words} Of each target it is asked whether the likeliest token in its place "
            f"is among the {self.last} tokens before it (rep/{self.last}) and is wrong besides "
            f"(wrep/{self.last}), and how often the author's own token is."
        )

    def scores(
        self, logits: Float[Array, "*n vocab"], targets: Int[Array, "*n"]
    ) -> dict[str, Float[Array, "*n"]]:
        # ids below 2^24 are exact in fp32
        return {"likeliest": jnp.argmax(logits, axis=-1).astype(jnp.float32)}

    def per_token(
        self, tokens: Ids, scores: dict[str, Float[np.ndarray, " n"]]
    ) -> dict[str, Float[np.ndarray, " n"]]:
        text, likeliest = tokens[1:], scores["likeliest"][1 : len(tokens)].astype(np.int32)
        again = among_the_last(likeliest, text, self.last)
        found = {
            "rep": again,
            "wrep": again & (likeliest != text),
            "rep_of_author": among_the_last(text, text, self.last),
        }
        return {key: np.append(False, x).astype(np.float32) for key, x in found.items()}


def _share(name: str, key: str, formula: str) -> Measure:
    return Measure(name, key, f"{key}_ci95", key, formula, bounds=(0.0, 1.0))
