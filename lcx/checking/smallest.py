"""The smallest text that shows a mistake of a sublayer: what a message can name."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lcx.checking.trial import ROWS, Trial, compiled, in_pieces, outside
from lcx.parallel.seqpar import Shards, stacked

SMALL = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Tokens of the cases that are tried to show a mistake by a small one."""


def changed_where(mask: Any, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
    """x with other tokens there; mask: of tokens, or of more."""
    values = np.asarray(x)
    other = np.where(np.asarray(mask)[..., None], 3 * values[:, ::-1] + 1, values)
    return jnp.asarray(other, x.dtype)


def smallest(
    trial: Trial,
    segments: Callable[[int], Int[np.ndarray, " n"] | None],
    hidden: Callable[[int, int], Bool[np.ndarray, " n"]],
) -> str | None:
    """The shortest text, of `SMALL`, and the first of its tokens that an output sees and may not.

    segments: the documents of a text of n tokens; hidden: which positions may not see token i of n.
    """
    for n in SMALL:
        if n > trial.longest:
            break
        said = segments(n)
        row = np.ones(n, np.int32) if said is None else said
        ctx = trial.one_document(n, jnp.asarray(np.tile(row, (ROWS, 1)), jnp.int32))
        x = trial.input(n)
        try:
            y = trial.forward(trial.params, x, ctx)
            unit = trial.rounding_forward(x, ctx)
        except Exception:  # a class may not be made for so few
            continue
        for token in range(n):
            at = np.arange(n)[None] == token
            changed = trial.forward(trial.params, changed_where(at, x), ctx)
            seen = outside(changed, y, unit).any(axis=(0, 2)) & hidden(token, n)
            if seen.any():
                documents = "" if said is None else ", in two documents"
                return (
                    f"changing token {token} changes the output at position {seen.argmax()} "
                    f"(of {n} tokens{documents})"
                )
    return None


def first_position(far: Bool[np.ndarray, "B T D"]) -> int:
    """The first token of any row where something is."""
    return int(far.any(axis=(0, 2)).argmax())


def pieces(trial: Trial, cuts: tuple[int, ...]) -> Callable:
    """(params, x, ctx) -> y of a text in pieces with a state."""
    return compiled(lambda p, x, ctx: in_pieces(trial.tried, p, x, ctx, trial.dims, cuts))


def _pieces_far(trial: Trial, cuts: tuple[int, ...], n: int) -> Bool[np.ndarray, "B T D"]:
    """Where a document of n tokens is another in pieces."""
    x, ctx = trial.input(n), trial.one_document(n)
    one = trial.one_document(n, trial.ones(n))
    unit = trial.rounding_forward(x, one)
    y = trial.forward(trial.params, x, one)
    return outside(pieces(trial, cuts)(trial.params, x, ctx), y, unit)


def smallest_pieces(trial: Trial) -> tuple[tuple[int, ...], int] | None:
    """Cuts and tokens of the shortest text that shows it."""
    for n in (n for n in SMALL if n <= trial.longest):
        for cut in sorted({1, n // 2, n - 1}):
            try:
                if _pieces_far(trial, (cut,), n).any():
                    return (cut,), n
            except Exception:  # a class may not be made for so few
                continue
    return None


def smallest_far(trial: Trial, cuts: tuple[int, ...], n: int) -> int:
    """The first position where a document of n tokens is another in pieces."""
    return first_position(_pieces_far(trial, cuts, n))


def in_shards(trial: Trial) -> Callable:
    """(params, x, ctx) -> y of a sequence in two pieces, on one device."""
    shards = Shards(2, one_device=True)

    def call(params, x, ctx):
        return trial.tried(params, x, ctx._replace(shards=shards)).x

    return stacked(call, shards, (None, 0, 0))


def smallest_shards(trial: Trial) -> tuple[int, int] | None:
    """The first position and the tokens of the shortest text that shows it."""
    call = compiled(in_shards(trial))
    for n in (n for n in SMALL if n % 4 == 0 and n <= trial.longest):
        x, one = trial.input(n), trial.one_document(n, trial.ones(n))
        try:
            unit = trial.rounding_forward(x, one)
            far = outside(call(trial.params, x, one), trial.forward(trial.params, x, one), unit)
        except Exception:  # a class may not be made for so few
            continue
        if far.any():
            return first_position(far), n
    return None
