"""A learned vector for each position."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lcx.dense import normal
from lcx.types import Dims, Params


@dataclass(frozen=True)
class Learned:
    """A learned vector for each of `length` positions, added to the embedding (GPT-2, BERT).

    Not a scheme of a mixer: `LM(positions=Learned(512))`, whose mixers then take `NoPE()`. With a
    factor, position p reads the table at p / factor, between two rows by linear interpolation: so a
    trained table serves texts of `factor * length` tokens. A longer one comes out as NaN. In
    training the pieces of a long document, which a row cuts, are counted from 0.
    """

    length: int
    factor: float = 1.0

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"Learned: length must be at least 1, not {self.length}")
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"Learned by {self.factor}: the factor must be at least 1")

    @property
    def capacity(self) -> int:
        """The longest text, in tokens."""
        return math.floor(self.length * self.factor)

    def init(self, dims: Dims, rngs: nnx.Rngs) -> Params:
        shape, dtype = (self.length, dims.model), jnp.dtype(dims.policy.params)
        table = normal(0.02)(rngs.params(), shape, dtype)
        return nnx.Dict(table=nnx.Param(table, out_sharding=(None, "embed"), kind="table"))

    def __call__(self, params: Params, positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The vectors at these positions; NaN at those of no vector."""
        # summed over tokens in fp32, like the shares between two rows
        table = params.table[...].astype(jnp.float32)
        at = positions / self.factor
        row = jnp.floor(at).astype(jnp.int32)
        share = (at - row)[..., None]

        def rows(index):
            return table.at[index].get(mode="fill", fill_value=jnp.nan)

        upper = jnp.where(row < self.length, jnp.minimum(row + 1, self.length - 1), row)
        return (1 - share) * rows(row) + share * rows(upper)
