"""Specs as text: written as JSON, read back, checked, changed by path, compared and printed.

A spec is a frozen dataclass without arrays. Its fields hold numbers, strings, booleans, None, other
specs, and tuples of these. Two texts stand for a spec, and both load back equal:

    JSON          {"type": "RoPE", "theta": 10000.0, "scaling": null}      `encode`, `decode`
    expression    RoPE(scaling=PositionInterpolation(factor=8.0))          `describe`, `parse`

`types` says which names may occur in them: a plain dict of class name -> class. A place inside a
spec is named by a path of field names and tuple indices: `model.pattern.0.mixer.heads`.

Every error is a `SpecError` whose message begins with the path of what is wrong. An expression is
read from its syntax tree and never executed.
"""

import ast
import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from keyword import iskeyword
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from beartype import BeartypeConf, FrozenDict
from beartype.door import is_bearable
from beartype.vale import Is

Spec = TypeVar("Spec")


class SpecError(ValueError):
    """A spec, or a text that stands for one, is wrong. The message says where and what fits."""


# ------------------------------------------------------------------------------ JSON


def encode(spec: Any, path: str = "") -> Any:
    """What `json.dumps` takes: specs as objects with their `type`, tuples as lists.

    Infinity is written as Python's `json` writes it. Raises SpecError at a value that does not
    fit its annotation or has no JSON form, so nothing is written that would not load.
    """
    if _is_spec(spec):
        encoded = {"type": type(spec).__name__}
        for name, hint in _hints(type(spec)).items():
            here = _join(path, name)
            encoded[name] = encode(_fit(getattr(spec, name), hint, here), here)
        return encoded
    if isinstance(spec, tuple):
        return [encode(item, _join(path, i)) for i, item in enumerate(spec)]
    if spec is None or isinstance(spec, bool | int | float | str):
        return spec
    raise _error(path, f"{_show(spec)} cannot be written as JSON")


def decode(data: Any, types: Mapping[str, type], path: str = "") -> Any:
    """The spec that `encode` wrote. Fields left out take their defaults.

    Raises SpecError at an unknown type or field, a missing field, or a value that does not fit.
    """
    match data:
        case {"type": str(name), **values}:
            cls = _known_type(name, types, path)
            values = {key: decode(value, types, _join(path, key)) for key, value in values.items()}
            return _build(cls, values, path)
        case list():
            return tuple(decode(item, types, _join(path, i)) for i, item in enumerate(data))
        case None | bool() | int() | float() | str():
            return data
    raise _error(path, f'expected an object with a "type", got {data!r}')


# ------------------------------------------------------------------------------ expressions


def describe(spec: Any) -> str:
    """The shortest constructor expression of a spec: fields at their defaults are left out."""
    if _is_spec(spec):
        shown = []
        for field in fields(spec):
            value = getattr(spec, field.name)
            factory = field.default_factory
            default = field.default if factory is MISSING else factory()
            if field.init and value != default:
                shown.append(f"{field.name}={describe(value)}")
        return f"{type(spec).__name__}({', '.join(shown)})"
    if isinstance(spec, tuple):
        return f"({', '.join(map(describe, spec))}{',' * (len(spec) == 1)})"
    # NumPy's float64 is a float whose own repr is not a literal.
    return float.__repr__(spec) if isinstance(spec, float) else repr(spec)


def parse(text: str, types: Mapping[str, type], path: str = "") -> Any:
    """The value of an expression: literals, arithmetic on numbers, tuples, calls of `types`.

    `8`, `-1e-3`, `inf`, `2**14`, `'a'`, `None`, `(Block(RWKV4()), Block(RetNet(heads=4)))`. Lists
    are read as tuples. Whatever else Python could compute is refused. `path` begins the messages.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, types, path)
    except SpecError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or error or "too deeply nested"
        raise _error(path, f"cannot read {text[:200]!r}: {reason}") from error


def _value(node: ast.expr, types: Mapping[str, type], path: str) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return node.value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, types, _join(path, i)) for i, item in enumerate(items))
        case ast.Call(func=ast.Name(id=name)):
            return _call(node, _known_type(name, types, path), types, path)
        case ast.UnaryOp(operand=number):
            return _arithmetic(node, [_value(number, types, path)], path)
        case ast.BinOp(left=left, right=right):
            return _arithmetic(node, [_value(n, types, path) for n in (left, right)], path)
        case ast.Name(id="inf"):
            return math.inf
        case ast.Name(id=name) if name in types:
            raise _error(path, f"{name} is a class; write {name}()")
        case ast.Name(id=name):
            near = _nearest(name, [*types, "True", "False", "None", "inf"])
            raise _error(path, f"unknown name {name!r}{near or '.'} A string inside takes quotes")
    raise _error(
        path,
        f"cannot read {ast.unparse(node)!r}: a value is a literal, arithmetic on numbers, "
        "a tuple of values, or a call such as Name(field=value)",
    )


def _call(node: ast.Call, cls: type, types: Mapping[str, type], path: str) -> Any:
    names = [field.name for field in fields(cls) if field.init and not field.kw_only]
    if len(node.args) > len(names):
        raise _error(
            path, f"{cls.__name__} takes {len(names)} values without a name, got {len(node.args)}"
        )
    values = {}
    arguments = [*zip(names, node.args, strict=False), *((k.arg, k.value) for k in node.keywords)]
    for name, argument in arguments:
        if name is None:
            raise _error(path, f"cannot read '**{ast.unparse(argument)}': write the fields out")
        if name in values:
            raise _error(path, f"{cls.__name__} is given {name!r} twice")
        values[name] = _value(argument, types, _join(path, name))
    return _build(cls, values, path)


def _power(base: int | float, exponent: int | float) -> int | float:
    # Guarded, since 9**9**9 would compute for hours; 256 bits hold any number a spec needs.
    both_int = isinstance(base, int) and isinstance(exponent, int)
    if both_int and base.bit_length() * abs(exponent) > 256:
        raise OverflowError("too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ArithmeticError("not a real number")
    return result


_OPERATORS: dict[type[ast.AST], Callable[..., int | float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _arithmetic(node: ast.UnaryOp | ast.BinOp, numbers: list[Any], path: str) -> int | float:
    apply = _OPERATORS.get(type(node.op))
    try:
        if apply is None or any(type(number) not in (int, float) for number in numbers):
            raise ArithmeticError("only + - * / // % ** between numbers")
        return apply(*numbers)
    except ArithmeticError as error:
        raise _error(path, f"cannot compute {ast.unparse(node)!r}: {error}") from error


# ------------------------------------------------------------------------------ whole specs


def check(spec: Any, path: str = "") -> None:
    """Raises SpecError at the first field, here or deeper, whose value misfits its annotation.

    An int does where a float is wanted; a bool is not an int; nan equals nothing and is refused.
    """
    if _is_spec(spec):
        for name, hint in _hints(type(spec)).items():
            here = _join(path, name)
            _fit(getattr(spec, name), hint, here)
            check(getattr(spec, name), here)
    elif isinstance(spec, tuple):
        for i, item in enumerate(spec):
            check(item, _join(path, i))


def override(spec: Spec, assignment: str, types: Mapping[str, type]) -> Spec:
    """A copy of `spec` in which one place has changed: `"model.pattern.0.mixer.heads=8"`.

    The right-hand side is an expression as `parse` reads it, or, where a string fits, the bare
    string: `model.remat=block`. The copy's constructors run, with their own checks.
    """
    path, sign, text = assignment.partition("=")
    steps = path.strip().split(".")
    if not sign or not all(steps):
        raise SpecError(f"expected path=value, such as train.steps=400, got {assignment!r}")
    return _replaced(spec, Any, steps, text.strip(), types, "")


def _replaced(
    old: Any, hint: Any, steps: list[str], text: str, types: Mapping[str, type], path: str
) -> Any:
    if not steps:
        return _read(text, hint, types, path)
    step, *rest = steps
    here = _join(path, step)
    if _is_spec(old):
        inner = _hint(type(old), step, path)
        new = _replaced(getattr(old, step), inner, rest, text, types, here)
        values = {name: getattr(old, name) for name in _hints(type(old))}
        return _build(type(old), values | {step: new}, path)
    if isinstance(old, tuple):
        if not re.fullmatch("[0-9]+", step) or int(step) >= len(old):
            raise _error(path, f"no index {step!r} in a tuple of length {len(old)}")
        index = int(step)
        inner = next((hints[index] for hints in _item_hints(hint, len(old))), Any)
        new = _replaced(old[index], inner, rest, text, types, here)
        return (*old[:index], new, *old[index + 1 :])
    raise _error(path, f"holds {_show(old)}, neither a spec nor a tuple: it has no {step!r}")


def _read(text: str, hint: Any, types: Mapping[str, type], path: str) -> Any:
    """`parse`, for a place of this annotation: a bare string is taken where a string fits."""
    try:
        return _fit(parse(text, types, path), hint, path)
    except SpecError as error:
        if not text.startswith(("'", '"')) and _accepts(text, hint):
            return text
        if text.isidentifier() and not iskeyword(text) and text not in types:
            choices = [a for h in _options(hint) if get_origin(h) is Literal for a in get_args(h)]
            names = [*types, "True", "False", "None", *map(str, choices)]
            raise _error(path, f"{_misfit(text, hint)}{_nearest(text, names)}") from error
        raise


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two specs differ, one line a place: `train.steps: 400 here, 800 there`."""
    if a == b:
        return []
    if _is_spec(a) and type(a) is type(b):
        pairs = [(name, getattr(a, name), getattr(b, name)) for name in _hints(type(a))]
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        pairs = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return [f"{path}: {describe(a)} here, {describe(b)} there".removeprefix(": ")]
    return [line for name, x, y in pairs for line in differences(x, y, _join(path, name))]


def values(spec: Any) -> dict[str, Any] | None:
    """Name and value of each field of a spec; None for what is no spec."""
    return {name: getattr(spec, name) for name in _hints(type(spec))} if _is_spec(spec) else None


def parts(spec: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The path of every spec that occurs in a spec, and that spec; itself first."""
    inner = dict(enumerate(spec)) if isinstance(spec, tuple) else values(spec)
    if _is_spec(spec):
        yield path, spec
    for step, value in (inner or {}).items():
        yield from parts(value, _join(path, step))


def types_of(spec: Any) -> dict[str, type]:
    """Name and class of the specs that occur in a spec, itself included."""
    return {type(part).__name__: type(part) for _, part in parts(spec)}


# ------------------------------------------------------------------------------ fields


def _is_spec(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Name and annotation of each field that the constructor of `cls` takes, in order."""
    hints = get_type_hints(cls, include_extras=True)
    named = {field.name: hints[field.name] for field in fields(cls) if field.init}
    if "type" in named:
        raise TypeError(f"{cls.__name__}: 'type' cannot name a field, it names the class in JSON")
    return named


def _hint(cls: type, name: str, path: str) -> Any:
    if name in _hints(cls):
        return _hints(cls)[name]
    has = ", ".join(_hints(cls)) or "no fields"
    near = _nearest(name, _hints(cls))
    raise _error(path, f"unknown field {name!r} of {cls.__name__}{near or '.'} It has: {has}")


def _known_type(name: str, types: Mapping[str, type], path: str) -> type:
    if name in types:
        return types[name]
    near = _nearest(name, types) or "."
    raise _error(path, f"unknown type {name!r}{near} Known: {', '.join(types)}")


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """`cls(**values)`, once each name is known, each value fits, and no required one is missing."""
    values = {
        name: _fit(value, _hint(cls, name, path), _join(path, name))
        for name, value in values.items()
    }
    missing = [
        field.name
        for field in fields(cls)
        if field.init and field.name not in values
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise _error(path, f"{cls.__name__} needs {', '.join(missing)}")
    try:
        return cls(**values)
    except ValueError as error:
        raise _error(path or cls.__name__, str(error)) from error


# ------------------------------------------------------------------------------ annotations

# In Python True is an int; in a spec it is a mistake.
_BOOL_IS_NO_INT = BeartypeConf(
    hint_overrides=FrozenDict({int: Annotated[int, Is[lambda value: not isinstance(value, bool)]]})
)


def _accepts(value: Any, hint: Any) -> bool:
    return is_bearable(value, hint, conf=_BOOL_IS_NO_INT)


def _fit(value: Any, hint: Any, path: str) -> Any:
    """`value` as a field annotated `hint` holds it: an int becomes a float where that is wanted.

    Tuples are fitted item by item (beartype looks at one item only); specs are taken whole.
    """
    errors = []
    for inner in _item_hints(hint, len(value)) if isinstance(value, tuple) else ():
        try:
            return tuple(_fit(item, inner[i], _join(path, i)) for i, item in enumerate(value))
        except SpecError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else _error(path, _misfit(value, hint))
    if is_dataclass(value) and isinstance(value, type):  # it has the methods, so a Protocol fits
        raise _error(path, f"got the class {value.__name__}; write {value.__name__}()")
    if isinstance(value, float) and math.isnan(value):
        raise _error(path, "nan is not a setting: it would not load back equal")
    if _accepts(value, hint):
        if faults := _protocol_faults(value, hint):
            raise _error(path, faults)
        return value
    if type(value) is int and abs(value) <= sys.float_info.max and _accepts(float(value), hint):
        return float(value)
    note = "; a tuple of one is written (x,)" if _accepts((value,), hint) else ""
    raise _error(path, _misfit(value, hint) + note)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _item_hints(hint: Any, length: int) -> list[tuple[Any, ...]]:
    """The annotations of the items of a tuple of this length, one way for each way it may fit."""
    inners = [get_args(option) for option in _options(hint) if get_origin(option) is tuple]
    inners = [inner[:1] * length if inner[-1:] == (...,) else inner for inner in inners]
    return [inner for inner in inners if len(inner) == length]


# ------------------------------------------------------------------------------ messages


def _join(path: str, step: str | int) -> str:
    return f"{path}.{step}" if path else str(step)


def _error(path: str, message: str) -> SpecError:
    return SpecError(f"{path}: {message}" if path else message)


def _show(value: Any) -> str:
    return describe(value) if _is_spec(value) else f"{describe(value)} ({type(value).__name__})"


def _misfit(value: Any, hint: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) and not get_args(hint) else repr(hint)
    # Modules are noise to a reader of the message; what stands in quotes stays.
    name = re.sub(r"('[^']*')|[\w.<>]+\.(?=\w)", r"\1", name)
    faults = _protocol_faults(value, hint)
    return f"expected {name}, got {_show(value)}{faults and f': {faults}'}"


def _protocol_faults(value: Any, hint: Any) -> str:
    """What a spec lacks of the one protocol among these annotations; empty: nothing, or not one.

    Its methods, and the values that each of them is given, by position.
    """
    protocols = [option for option in _options(hint) if getattr(option, "_is_protocol", False)]
    if len(protocols) != 1 or not _is_spec(value):
        return ""
    others = [option for option in _options(hint) if option is not protocols[0]]
    if any(_accepts(value, other) for other in others):
        return ""
    (protocol,), cls, lacking, other = protocols, type(value).__name__, [], []
    for name, declared in _members(protocol).items():
        if not callable(declared):
            if not hasattr(value, name):
                lacking.append(name)
            continue
        wanted = [p for p in inspect.signature(declared).parameters if p != "self"]
        call = f"{name}({', '.join(wanted)})"
        if not callable(getattr(value, name, None)):
            lacking.append(call)
        elif not _takes(getattr(value, name), declared):
            own = ", ".join(inspect.signature(getattr(value, name)).parameters)
            other.append(f"{cls}.{name} takes ({own}), expected {call}")
    return f"{cls} has no {' and no '.join(lacking)}" if lacking else "; ".join(other)


@cache
def _members(protocol: type) -> dict[str, Any]:
    """Name and declaration of what a protocol asks for; of fields None."""
    found: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if vars(base).get("_is_protocol") and base is not Protocol:
            found |= dict.fromkeys(vars(base).get("__annotations__", ()))
            found |= vars(base)
    return {n: d for n, d in found.items() if n == "__call__" or not n.startswith("_")}


def _takes(method: Callable, declared: Callable) -> bool:
    """Whether a method can be given what the protocol's is, by position."""
    wanted = list(inspect.signature(declared).parameters.values())
    needed = [p for p in wanted if p.name != "self"]
    fewest = [p for p in needed if p.default is inspect.Parameter.empty]
    try:
        for some in (needed, fewest):
            inspect.signature(method).bind(*some)
    except TypeError:
        return False
    except ValueError:  # a method that is not written in Python
        return True
    return True


def _nearest(name: str, names: Iterable[str]) -> str:
    """How a message goes on after an unknown name; empty when no known one is near."""
    by_lower = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
