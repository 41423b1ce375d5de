"""The laws that every sublayer keeps, and the smallest case of one that is broken.

A law takes a `Trial` and raises BrokenLawError. What is compared is within what rounding does to
that very sublayer (`lcx.checking.bounds`), measured at the same arguments; where nothing may pass
at all, as from a later token to an earlier one, too: chunked forms add and take away again what
other tokens contribute, and are left with its rounding.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float32, Int

from lcx.adapters.initial_state import with_field
from lcx.checking.smallest import (
    changed_where,
    first_position,
    in_shards,
    pieces,
    smallest,
    smallest_far,
    smallest_pieces,
    smallest_shards,
)
from lcx.checking.trial import (
    ROWS,
    Trial,
    exactly,
    finite,
    gradients_of,
    outside,
)
from lcx.tracebacks import own_lines
from lcx.types import Context, Output, take_rows
from lcx.wording import listed, plural


class BrokenLawError(ValueError):
    """A class does not keep a law; the message names it and the smallest case that was found."""


# ------------------------------------------------------------------------------ the laws


def gives_what_was_asked(trial: Trial) -> None:
    """Parameters are a tree, outputs are `Output`s of the input's shape, None in is None out."""
    params = jax.eval_shape(trial.fresh)
    name = trial.name
    if not isinstance(params, nnx.Dict):
        got = type(params).__name__
        raise BrokenLawError(f"{name}.init gave a {got}, expected an nnx.Dict of parameters")
    x, ctx = trial.x, trial.packed
    out = shape_of(name, trial, params, x, ctx, None)
    if out.state is not None:
        raise BrokenLawError(f"{name} gave a state where none was given, expected None")
    state = jax.eval_shape(lambda: trial.sublayer.init_state(trial.dims, ROWS, trial.length))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not leaf.shape or leaf.shape[0] != ROWS:
            where = f"init_state(dims, batch={ROWS}, ...){jax.tree_util.keystr(path)}"
            raise BrokenLawError(
                f"{name}.{where} is of {shown(leaf.shape)}, expected the batch axis, {ROWS}, first"
            )
    few = jax.eval_shape(lambda c: jax.tree.map(lambda a: a[:, :2], c), ctx)
    x = jax.ShapeDtypeStruct((ROWS, 2, *x.shape[2:]), x.dtype)
    after = shape_of(name, trial, params, x, few, state).state
    keeps_state(name, state, after)


def shape_of(name: str, trial: Trial, params: Any, x: Any, ctx: Context, state: Any) -> Output:
    """The shapes of one call's output, which are as they have to be."""
    out = jax.eval_shape(trial.sublayer, params, x, ctx, state)
    if not isinstance(out, Output):
        what = f"a {type(out).__name__}"
        raise BrokenLawError(f"{name} gave {what}, expected an Output(x, state)")
    if not hasattr(out.x, "shape") or out.x.shape != x.shape:
        got = shown(getattr(out.x, "shape", ())) if hasattr(out.x, "shape") else repr(out.x)
        raise BrokenLawError(f"{name} gave x of {got}, expected {shown(x.shape)}")
    return out


def keeps_state(name: str, before: Any, after: Any) -> None:
    """A state has the same arrays after a call as before it."""
    structures = [jax.tree.structure(tree) for tree in (before, after)]
    if structures[0] != structures[1]:
        raise BrokenLawError(
            f"{name} gave the state {type(after).__name__}, which is not built as that of "
            f"init_state, {type(before).__name__}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, a), b in pairs:
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            where = jax.tree_util.keystr(path).removeprefix(".") or "the state"
            raise BrokenLawError(
                f"{name}: state's {where} became {shown(b.shape)} {b.dtype}, expected "
                f"{shown(a.shape)} {a.dtype} as init_state has it"
            )


def keeps_dtypes(trial: Trial) -> None:
    """bf16 in is bf16 out, finite; a state keeps its dtypes, and sums over the past are fp32."""
    name = trial.name
    half = trial.half
    for t in (trial, half):
        compute = t.dims.policy.compute
        params = jax.eval_shape(t.fresh)
        x = t.x
        out = jax.eval_shape(t.sublayer, params, x, t.packed)
        if out.x.dtype != compute:
            raise BrokenLawError(
                f"{name} gave {out.x.dtype} under Policy(compute={compute!r}), expected {compute}: "
                "let it end in .astype(x.dtype)"
            )
        state = jax.eval_shape(lambda t=t: t.sublayer.init_state(t.dims, ROWS, t.length))
        few = jax.eval_shape(lambda c: jax.tree.map(lambda a: a[:, :2], c), t.packed)
        x = jax.ShapeDtypeStruct((ROWS, 2, *x.shape[2:]), x.dtype)
        keeps_state(
            f"{name} under Policy(compute={compute!r})",
            state,
            jax.eval_shape(t.sublayer, params, x, few, state).state,
        )
        for field, said, leaf in fields_of(state):
            if _says_fp32(said) and leaf.dtype != jnp.float32:
                raise BrokenLawError(
                    f"{name}: state's {field} is {leaf.dtype} under Policy(compute={compute!r}), "
                    "and annotated as Float32"
                )
    if not finite(half.forward(half.params, half.x, half.packed)):
        raise BrokenLawError(f"{name} gave nan or inf under Policy(compute='bfloat16')")


def _says_fp32(annotation: Any) -> bool:
    return getattr(annotation, "dtypes", None) == Float32[jax.Array, ""].dtypes


def fields_of(state: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, annotation, array) of every field of a state, and of the states in it."""
    if not hasattr(state, "_fields"):
        for part in state:
            yield from fields_of(part) if isinstance(part, tuple) else ()
        return
    hints = get_type_hints(type(state))
    for field in state._fields:
        value = getattr(state, field)
        if isinstance(value, tuple):
            yield from fields_of(value)
        elif value is not None:
            yield field, hints.get(field), value


def is_finite(trial: Trial) -> None:
    """Outputs and gradients are finite, of padding, too."""
    nothing = jnp.zeros((ROWS, trial.length), jnp.int32)
    padding = Context.of(nothing, nothing, lengths=trial.packed.lengths)
    of_padding = trial.whole(trial.params, trial.x, padding, trial.evenly)
    for what, result in (("packed documents", trial.result), ("rows of padding", of_padding)):
        if not finite(result.y):
            raise BrokenLawError(f"{trial.name} gave nan or inf for {what}")
        for part, tree in (("input", result.x), ("parameters", result.params)):
            if not finite(tree):
                raise BrokenLawError(
                    f"{trial.name}: the gradient of its {part} is nan or inf for {what}"
                )


def has_gradients(trial: Trial) -> None:
    """Every parameter has a gradient, and so has the input."""
    if not np.any(np.asarray(trial.result.x)):
        raise BrokenLawError(f"{trial.name}: no gradient reaches its input")
    leaves = jax.tree_util.tree_leaves_with_path(trial.result.params)
    values, structure = jax.tree.flatten(trial.params)
    for number, (path, gradient) in enumerate(leaves):
        if np.any(np.asarray(gradient)):
            continue
        # a rate that is kept beside the parameters, behind stop_gradient, is meant to stay
        other = [2 * a + 1 if i == number else a for i, a in enumerate(values)]
        y = trial.whole(structure.unflatten(other), trial.x, trial.packed, trial.evenly).y
        if np.array_equal(y, trial.result.y):
            where = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            raise BrokenLawError(
                f"{trial.name}: its parameter {where} gets no gradient, and no output depends on it"
            )


def is_causal(trial: Trial) -> None:
    """No output sees a later token, and no gradient goes to one."""
    t_of = np.arange(trial.length)[None]
    one = jnp.ones((ROWS, trial.length), jnp.int32)
    ctx = trial.one_document(trial.length, one)
    y = trial.output(trial.x, ctx)
    unit = trial.rounding(ctx, trial.evenly).y
    for t in (0, 1, trial.length // 2 - 1, trial.length // 2, trial.length - 2):
        later = t_of > t
        changed = trial.output(changed_where(later, trial.x), ctx)
        if outside(changed[:, : t + 1], y[:, : t + 1], unit).any():
            small = smallest(trial, lambda n: None, lambda i, n: np.arange(n) < i)
            raise BrokenLawError(
                f"{trial.name} is not causal: "
                + (small or f"changing tokens after {t} changes outputs up to there")
            )
    t = trial.length // 2
    weight = jnp.asarray(np.tile(t_of <= t, (ROWS, 1)), jnp.float32)
    _no_gradient(trial, ctx, weight, t_of > t, "is not causal: gradients reach a later token")


def documents_are_apart(trial: Trial) -> None:
    """A packed document is as if it were alone, and gets no gradient of another."""
    segments = np.asarray(trial.packed.segments)
    y, unit = trial.result.y, trial.units.y
    for number in range(1, segments.max() + 1):
        others = (segments != number) & (segments > 0)  # in both rows, which are apart already
        changed = trial.output(changed_where(others, trial.x), trial.packed)
        mine = segments == number
        if outside(changed[mine], y[mine], unit).any():
            small = smallest(trial, two_documents, _in_the_other)
            raise BrokenLawError(
                f"{trial.name} sees from one packed document into another (ctx.segments, "
                f"ctx.starts): {small or f'changing the others changes document {number}'}"
            )
    alone_is_the_same(trial)
    inside = segments == 2
    weight = jnp.asarray(inside, jnp.float32)
    crosses = "lets gradients cross from one packed document into another (ctx.segments)"
    _no_gradient(trial, trial.packed, weight, ~inside, crosses)


def two_documents(length: int) -> Int[np.ndarray, " n"]:
    """The segments of two documents, half of a row each."""
    return 1 + (np.arange(length) >= length // 2)


def _in_the_other(token: int, length: int) -> Bool[np.ndarray, " n"]:
    return two_documents(length) != two_documents(length)[token]


def alone_is_the_same(trial: Trial) -> None:
    """A packed document has the outputs of one at the start of a row of padding."""
    for row, segments in enumerate(np.asarray(trial.packed.segments)):
        for number in range(1, segments.max() + 1):
            (where,) = np.nonzero(segments == number)
            order = np.concatenate([where, np.setdiff1d(np.arange(trial.length), where)])
            alone = np.tile(np.arange(trial.length) < len(where), (ROWS, 1)).astype(np.int32)
            positions, lengths = (
                jnp.asarray(np.tile(np.asarray(a)[row, order], (ROWS, 1)))
                for a in (trial.packed.positions, trial.packed.lengths)
            )
            ctx = Context.of(positions, jnp.asarray(alone), lengths=lengths)
            x = jnp.asarray(np.tile(np.asarray(trial.x)[row, order], (ROWS, 1, 1)))
            y = trial.output(x, ctx)
            if outside(trial.result.y[row, where], y[0, : len(where)], trial.units.y).any():
                raise BrokenLawError(
                    f"{trial.name} reads a packed document otherwise than the same document alone: "
                    f"tokens {where[0]} to {where[-1]} of a row of {trial.length}, at positions "
                    f"from {int(positions[0, 0])} on (ctx.positions, ctx.starts)"
                )


def rows_are_apart(trial: Trial) -> None:
    """No row of a batch sees another."""
    first = np.arange(ROWS)[:, None] == 0
    changed = trial.output(changed_where(first, trial.x), trial.packed)
    if (far := outside(changed[1:], trial.result.y[1:], trial.units.y)).any():
        at = first_position(far)
        raise BrokenLawError(
            f"{trial.name} mixes the rows of a batch: changing row 0 changes the output of row 1 "
            f"at position {at} (of {plural(trial.length, 'token')})"
        )


def pieces_equal_the_whole(trial: Trial) -> None:
    """Pieces with a state give what one call gives: of one document, as evaluation reads, and of
    packed ones."""
    n = trial.length
    y = trial.output(trial.x, one := trial.one_document(n, trial.ones(n)))
    unit = trial.rounding(one, trial.evenly).y
    cuts = tuple(sorted({1, n // 2 + n // 16} - {n}))
    cases = (
        (trial.one_document(n), cuts, y, unit),
        (trial.packed, cuts[-1:], trial.result.y, trial.units.y),
    )
    for ctx, at, expected, bound in cases:
        got = pieces(trial, at)(trial.params, trial.x, ctx)
        far = outside(got, expected, bound)
        if not far.any():
            continue
        of = "" if ctx.segments is None else "packed "
        found = None if of else smallest_pieces(trial)
        where, tokens = found or (at, n)
        sizes = [b - a for a, b in zip((0, *where), (*where, tokens), strict=True)]
        position = smallest_far(trial, where, tokens) if found else first_position(far)
        raise BrokenLawError(
            f"{trial.name}: pieces with a state are not the whole: {of}text in pieces of "
            f"{listed(list(map(str, sizes)))} tokens gives another output at position {position}"
        )


def shards_equal_the_whole(trial: Trial) -> None:
    """A sequence on two shards (mesh.seq) gives what one device gives, and its gradients."""
    got = gradients_of(in_shards(trial))(trial.params, trial.x, trial.packed, trial.evenly)
    y = outside(got.y, trial.result.y, trial.units.y)
    dx = outside(got.x, trial.result.x, trial.units.x)
    if not (y.any() or dx.any()):
        return
    if not y.any():
        raise BrokenLawError(
            f"{trial.name}: on two shards of a sequence (mesh.seq=2) the gradient at position "
            f"{first_position(dx)} is another (of {plural(trial.length, 'token')}; ctx.shards)"
        )
    position, tokens = smallest_shards(trial) or (first_position(y), trial.length)
    raise BrokenLawError(
        f"{trial.name}: on two shards of a sequence (mesh.seq=2) the output at position {position} "
        f"is another (of {plural(tokens, 'token')}); give ops shards=ctx.shards, or fetch what is "
        "needed by lcx.parallel.seqpar"
    )


def begins_from_a_state(trial: Trial) -> None:
    """A document within a row that begins from a state is read as one that goes on from it.

    Of sublayers that say so (`Begins`).
    """
    sublayer, dims, n = trial.sublayer, trial.dims, trial.length // 2
    learned = getattr(sublayer, "learned_state", None)
    state = sublayer.init_state(dims, 1, n)
    if learned is not None:
        try:
            reduce(getattr, learned.split("."), state)
        except AttributeError:
            raise BrokenLawError(
                f"{trial.name}: its `learned_state` is {learned!r}, and its state, "
                f"{type(state).__name__}, has no such part"
            ) from None
    x, params = trial.x[:, : 2 * n], trial.params
    positions = jnp.arange(n, dtype=jnp.int32)[None]
    lengths = jnp.full_like(positions, trial.longest)
    state = sublayer(params, x[:1, :n], Context(positions, lengths=lengths), state).state
    rows = take_rows(state, jnp.zeros(ROWS, jnp.int32))
    going_on = Context(jnp.tile(positions, (ROWS, 1)), lengths=jnp.tile(lengths, (ROWS, 1)))
    y = sublayer(params, x[:, n:], going_on, rows).x
    two = jnp.repeat(jnp.array([1, 2], jnp.int32), n)[None] * trial.ones(2 * n)
    ctx = Context.of(jnp.tile(positions, (ROWS, 2)), two, lengths=jnp.tile(lengths, (ROWS, 2)))
    got = sublayer(params, x, ctx._replace(initial=state)).x[:, n:]
    if learned is not None:  # what is not learned is absent
        value: Any = reduce(getattr, learned.split("."), state)
        alone = with_field(state, learned, value)
        jax.eval_shape(sublayer, params, x, ctx._replace(initial=alone))
    if (far := outside(got, y, trial.units.y)).any():
        raise BrokenLawError(
            f"{trial.name} says by its `learned_state` that documents can begin from a state, and "
            f"does not read it as one that goes on: position {first_position(far)} of a document "
            "is another (ctx.initial, where ctx.starts)"
        )


LAWS: dict[str, Callable[[Trial], None]] = {
    "shapes": gives_what_was_asked,
    "dtypes": keeps_dtypes,
    "finite": is_finite,
    "gradients": has_gradients,
    "causal": is_causal,
    "rows": rows_are_apart,
    "documents": documents_are_apart,
    "pieces": pieces_equal_the_whole,
    "shards": shards_equal_the_whole,
    "begins": begins_from_a_state,
}
"""By the words of the table; without the first, no other can be tried."""


def broken(word: str, law: Callable[[Any], None], trial: Any) -> str | None:
    """What a law says of a trial; None: it is kept. word: what the law is called."""
    try:
        with exactly():
            law(trial)
    except BrokenLawError as error:
        return str(error)
    except Exception as error:  # of the class's own code, whatever it is
        lines = own_lines(error)
        where = f" ({lines[-1].filename}, line {lines[-1].lineno})" if lines else ""
        said = str(error).strip().split("\n")[0]
        kind = type(error).__name__
        return f"{trial.name} raised {kind} as {word!r} was tried: {said}{where}"
    return None


def shown(shape: tuple[int, ...]) -> str:
    """[2 8 16]."""
    return f"[{' '.join(map(str, shape))}]"


def _no_gradient(trial: Trial, ctx: Context, weight: Any, where: Any, what: str) -> None:
    """No gradient of the outputs that `weight` chooses reaches an input `where`."""
    dx = np.asarray(trial.whole(trial.params, trial.x, ctx, weight).x, np.float64)
    unit = trial.rounding(ctx, weight).x
    if outside(dx * np.asarray(where)[..., None], np.zeros_like(dx), unit).any():
        raise BrokenLawError(f"{trial.name} {what}")
