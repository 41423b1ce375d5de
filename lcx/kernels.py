"""Which form of an operation runs: the plain one, or one that is fast on the platform.

Every operation of `lcx.ops` that has several forms takes `kernels` and asks `chosen`. A model's
`Policy` says what its layers ask for.

    reference   the equation as it stands, token by token or all pairs at once; what others are
                checked against
    xla         chunks, tiles or a parallel scan, in JAX's own operations
    pallas      softmax attention in fused kernels for NVIDIA GPUs, wherever they take the case
                (decision 21); all else as by default
"""

from dataclasses import dataclass

import jax

FORMS = ("reference", "xla", "pallas")

FUSED = ("attention",)
"""The operations that have the form "pallas"."""

FASTEST: dict[str, dict[str, str]] = {
    "attention": {"gpu": "pallas"},
    # reading and writing is all the work there is, and one pass does least of it
    "lru": {"cpu": "reference"},
}
"""By operation and platform, where that is not "xla"."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Kernels:
    """What is asked for. Static in a pytree."""

    form: str | None = None
    """None: the fastest on the platform."""

    def __post_init__(self):
        if self.form not in (None, *FORMS):
            raise ValueError(
                f"kernels {self.form!r}: there are {', '.join(map(repr, FORMS))}, "
                "or None for the fastest on the platform"
            )


FASTEST_THERE_IS = Kernels()


def chosen(operation: str, kernels: Kernels, tokens: int | None = None) -> str:
    """The form of an operation that runs.

    tokens: T of a recurrence. Of one token the equation as it stands is the least work: what chunks
    and scans prepare would be for that token alone.
    """
    if kernels.form is not None and (kernels.form != "pallas" or operation in FUSED):
        return kernels.form
    if tokens == 1:
        return "reference"
    return FASTEST.get(operation, {}).get(jax.default_backend(), "xla")
