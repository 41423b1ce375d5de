"""Which parts of experiments are classes of the user's own, and what the laws say of them."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Console

from lcx import spec
from lcx.checking.laws import LAWS, broken
from lcx.checking.schemes import (
    NORM_LAWS,
    SCHEME_LAWS,
    SPARSITY_LAWS,
    WIDTH,
    NormTrial,
    SchemeTrial,
    SparsityTrial,
)
from lcx.checking.trial import miniature
from lcx.experiment import Experiment
from lcx.layers import Norm
from lcx.own_code import is_own_class
from lcx.positions import PositionScheme, RoPE
from lcx.sparsity import Sparsity
from lcx.types import Begins, Sublayer
from lcx.wording import listed, plural


class Part(NamedTuple):
    """A part of a model that is, or holds, a class of the user's own."""

    variant: str
    place: str
    """model.pattern.0.mixer"""
    value: Any
    mesh: bool
    """Whether a variant that has it cuts sequences."""
    experiment: Experiment


@dataclass(frozen=True)
class Finding:
    """What the laws said of one part."""

    variant: str
    """The first that has it, or the first whose mesh cuts sequences."""
    place: str
    name: str
    """Its class; the class of lcx's and, beside it, the user's own inside."""
    laws: dict[str, str | None]
    """What each law that was tried said, by its word; None: kept."""
    required: frozenset[str]
    """The laws that a training of the variants relies on: all, but for shards without a mesh."""

    @property
    def broken(self) -> list[str]:
        """What those laws said that are not kept."""
        return [said for law, said in self.laws.items() if said and law in self.required]


def parts(experiments: Mapping[str, Experiment], exactly: bool = True) -> list[Part]:
    """The sublayers, schemes, sparsities and norms that are of own classes or hold such.

    Each once. exactly: settings that differ in numbers alone are tried each; otherwise once.
    """
    found: dict[tuple[str, Any], Part] = {}
    for variant, experiment in experiments.items():
        for place, value in _candidates(experiment):
            same = value if exactly else _algorithm(value)
            cut = experiment.mesh.seq > 1
            before = found.get((_kind(value), same))
            if before is None or (cut and not before.mesh):
                found[_kind(value), same] = Part(variant, place, value, cut, experiment)
    return list(found.values())


def _candidates(experiment: Experiment) -> Iterator[tuple[str, Any]]:
    """(place, part) of all that is to be tried, what is innermost first."""
    for place, value in reversed(list(spec.parts(experiment.model, "model"))):
        own = [inner for _, inner in spec.parts(value) if is_own_class(type(inner))]
        scheme = isinstance(value, PositionScheme | Sparsity | Norm)
        sublayer = isinstance(value, Sublayer) and place.endswith((".mixer", ".channel"))
        if own and (scheme or sublayer):
            yield place, value


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _algorithm(value: Any) -> Any:
    """A spec without its numbers, of which it stays whether they are there and not 0."""
    if isinstance(value, tuple):
        return tuple(map(_algorithm, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value != 0
    inner = spec.values(value)
    return value if inner is None else (type(value), tuple(map(_algorithm, inner.values())))


def _name(value: Any) -> str:
    """MyMixer; SoftmaxAttention with MyWindow."""
    name = type(value).__name__
    inside = {type(i).__name__: None for _, i in spec.parts(value) if is_own_class(type(i))}
    return name if is_own_class(type(value)) else f"{name} with {listed(list(inside))}"


def findings(
    experiments: Mapping[str, Experiment], exactly: bool = True, shards: bool = True
) -> Iterator[Finding]:
    """What the laws say of each part of own classes: seconds each.

    shards: try the law of shards also where no mesh cuts sequences.
    """
    for part in parts(experiments, exactly):
        name = _name(part.value)
        trial, laws = _trial(part, name)
        if not (part.mesh or shards):
            laws = {word: law for word, law in laws.items() if word != "shards"}
        required = frozenset(laws) - (frozenset() if part.mesh else {"shards"})
        said: dict[str, str | None] = {}
        for word, law in laws.items():
            said[word] = broken(word, law, trial)
            if word == "shapes" and said[word]:
                break  # nothing else can be tried
        yield Finding(part.variant, part.place, name, said, required)


def _trial(part: Part, name: str) -> tuple[Any, dict[str, Callable[[Any], None]]]:
    """A part in miniature, and its laws. Messages name its place."""
    value, model = part.value, part.experiment.model
    longest = max(part.experiment.train.length, part.experiment.evaluation.longest)
    called = f"{part.place} ({name})"
    if isinstance(value, Norm):
        return NormTrial(called, value, model.width), dict(NORM_LAWS)
    holder = _holder(part)
    if isinstance(value, Sublayer) and part.place.endswith((".mixer", ".channel")):
        begins = isinstance(value, Begins)
        laws = {word: law for word, law in LAWS.items() if begins or word != "begins"}
        return miniature(called, value, model, longest), laws
    if isinstance(value, Sparsity):
        position = getattr(holder, "position", RoPE())
        return SparsityTrial(called, value, position, longest), dict(SPARSITY_LAWS)
    heads = getattr(holder, "heads", None)
    width = model.width // heads if heads else WIDTH
    return SchemeTrial(called, value, width, longest), dict(SCHEME_LAWS)


def _holder(part: Part) -> Any:
    """The sublayer that a scheme or a sparsity stands in."""
    for place, value in spec.parts(part.experiment.model, "model"):
        if part.place.startswith(f"{place}.") and place.endswith((".mixer", ".channel")):
            return value
    return None


def check_own(experiments: Mapping[str, Experiment], console: Console) -> None:
    """Raise ValueError where a class of the user's own breaks a law; say that all are kept.

    Takes seconds a class, and nothing where all are lcx's. Settings of a class that differ in
    numbers alone are tried once; shards where a variant's mesh cuts sequences.
    """
    begun, names = time.monotonic(), dict[str, None]()
    with console.status("trying classes of your own"):
        for found in findings(experiments, exactly=False, shards=False):
            if found.broken:
                raise ValueError(f"{found.variant}: {found.broken[0]}; lcx check FILE tells all")
            names[found.name] = None
    if names:
        seconds = plural(round(time.monotonic() - begun), "second")
        console.print(
            f"{listed(list(names))}: tried in miniature, and all laws are kept ({seconds})",
            highlight=False,
        )
