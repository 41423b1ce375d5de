"""Position schemes: how a mixer's queries and keys learn where they stand."""

from lcx.positions.rope import Linear, NoPE, PositionScheme, RoPE, Scaling

POSITIONS: dict[str, type] = {c.__name__: c for c in (RoPE, NoPE)}
SCALINGS: dict[str, type] = {c.__name__: c for c in (Linear,)}

__all__ = ["POSITIONS", "SCALINGS", "Linear", "NoPE", "PositionScheme", "RoPE", "Scaling"]
