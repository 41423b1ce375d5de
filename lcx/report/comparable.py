"""Which evaluations may stand on one page, and what a comparison of two variants can know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcx import spec
from lcx.evaluation.metrics import Evaluation, jsonable
from lcx.protocols.measures import Measure

BY_TOKENIZER = ("tokenizer", "fingerprint")
"""What a result says of its data that may differ where tokenizers do."""
BY_ROOM = ("documents", "spans", "targets", "left_out")
"""What differs where a tokenizer finds no room before a span that another has room for."""


@dataclass(frozen=True)
class Variant:
    """The evaluations of one variant, one a run."""

    results: list[Evaluation]

    @property
    def name(self) -> str:
        """What the experiment file calls it."""
        return self.results[0]["variant"]

    @property
    def contexts(self) -> list[int]:
        """The context lengths that it was scored at."""
        return [point["context"] for point in self.results[0]["contexts"]]

    def at(self, context: int) -> list[Any]:
        """Each run's score at one context length."""
        return [
            point for r in self.results for point in r["contexts"] if point["context"] == context
        ]

    def same_weights(self, other: "Variant") -> bool:
        """Whether run i of both has the very same parameters."""
        return all(self.results[0][k] == other.results[0][k] for k in ("published", "trainings"))

    def paired_with(self, other: "Variant") -> bool:
        """Whether run i of both comes from one and the same training, or begins with it."""
        a, b = (v.results[0]["trainings"][:1] for v in (self, other))
        return (a == b != [] or self.same_weights(other)) and len(self.results) == len(
            other.results
        )

    def training_chance_known(self, other: "Variant") -> bool:
        """Whether a comparison can tell what another training of either would change.

        It can where both have several runs; published weights are taken as they are; and two
        variants of the very same weights are compared as these weights.
        """
        several = all(len(v.results) > 1 or not v.results[0]["trainings"] for v in (self, other))
        return several or self.same_weights(other)


def grouped(results: Sequence[Evaluation]) -> list[Variant]:
    """Runs by variant, in the order of the results. Raises ValueError for a run given twice."""
    if not results:
        raise ValueError("a report needs the evaluation of at least one variant")
    found: dict[str, list[Evaluation]] = {}
    for result in results:
        runs = found.setdefault(result["variant"], [])
        if any(run["seed"] == result["seed"] for run in runs):
            raise ValueError(
                f"two results are of the same variant and seed: {result['variant']!r}, "
                f"{result['seed']}"
            )
        runs.append(result)
    return [Variant(sorted(runs, key=lambda r: r["seed"])) for runs in found.values()]


def check_comparable(variants: Sequence[Variant]) -> None:
    """Raise ValueError where protocols or data differ; tokenizers may."""
    first, *others = [result for variant in variants for result in variant.results]
    for other in others:
        if reason := why_not_comparable(first, other):
            raise ValueError(reason)


def why_not_comparable(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """What keeps two results off one page; None: nothing. Tokenizers may differ.

    So may what the protocol lets differ from variant to variant, but not within one. Read of each:
    its variant, protocol, data and what it says about the protocol.
    """
    differing = first["about"]["may_differ"] if first["variant"] != other["variant"] else ()
    cannot = f"{first['variant']!r} and {other['variant']!r} cannot be compared"
    for part in ("protocol", "data"):
        a, b = jsonable(first[part]), jsonable(other[part])
        other_tokens = part == "data" and a.get("tokenizer") != b.get("tokenizer")
        same_texts = part == "data" and a.get("fingerprint") == b.get("fingerprint")
        for key in sorted(a.keys() | b.keys()):
            if a.get(key) == b.get(key) or (other_tokens and key in BY_TOKENIZER):
                continue
            if part == "protocol" and key in differing:
                continue
            if same_texts and key == "source":
                continue  # they lie elsewhere now
            if other_tokens and key in BY_ROOM:
                return (
                    f"{cannot}: their tokenizers leave room for the longest context before "
                    "other spans. Give both the same SameTargets(before=...), in bytes, and "
                    "evaluate again"
                )
            return (
                f"{cannot}: {part}.{key} is {a.get(key)!r} for the one and {b.get(key)!r} for the "
                "other. Evaluate both again with the same protocol and data."
            )
    return None


def fitting_measures(variants: Sequence[Variant]) -> list[Measure]:
    """The protocol's measures; of several tokenizers, those per byte. A report is about the first.

    Raises ValueError where it has none for several tokenizers.
    """
    measures, first = measures_of(variants), variants[0].results[0]
    tokenizers = {str(v.results[0]["data"].get("tokenizer")) for v in variants}
    fitting = [m for m in measures if len(tokenizers) == 1 or m.per == "bytes"]
    if not fitting:
        raise ValueError(
            f"{first['protocol']['type']} measures nothing per byte, so variants of several "
            "tokenizers cannot be compared by it"
        )
    return fitting


def measures_of(variants: Sequence[Variant]) -> list[Measure]:
    """All that was measured."""
    return decoded_measures(variants[0].results[0]["about"])


def decoded_measures(about: Mapping[str, Any]) -> list[Measure]:
    """The measures of what a result, or a report, says of its protocol."""
    return [spec.decode(said, {"Measure": Measure}) for said in about["measures"]]
