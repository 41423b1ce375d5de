"""What several recurrences keep of a text; others have their own beside them."""

from typing import NamedTuple

from jaxtyping import Array, Float, Float32


class MatrixState(NamedTuple):
    """A matrix a head."""

    S: Float32[Array, "B H K V"]


class ShiftedState(NamedTuple):
    """A matrix a head, and the last token."""

    last: Float[Array, "B D"]
    S: Float32[Array, "B H K V"]


class ConvolvedState(NamedTuple):
    """A matrix a head, and the last inputs of a short convolution."""

    conv: Float[Array, "B W-1 D"]
    S: Float32[Array, "B H K V"]
