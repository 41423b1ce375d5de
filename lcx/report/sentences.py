"""What a report's page says of its numbers: only what these allow."""

import math

from lcx.report.summary import Report, context_lengths, context_unit, measure_in, terms_in
from lcx.report.tables import interval
from lcx.wording import isolated, listed, plural, short_number

BUSY = 0.8
"""Of the best step's speed: below it, the median step waited for more than a fifth of its time, and
a table of speeds says more of the machine than of its variants."""


def finding(report: Report) -> str:
    """The first sentence: who is best at the longest context, if that can be said of anyone; and
    what variants are held against."""
    return f"{_best_in_words(report)}{_reference_in_words(report)}"


def _reference_in_words(report: Report) -> str:
    if report["reference"] is None:
        return ""
    point, measure = report["reference"]["contexts"][-1], measure_in(report)
    between = interval(point[measure.interval])
    value = short_number(point[measure.key]) + (f" (95% interval {between})" if between else "")
    ends = {name: v["contexts"][-1][measure.key] for name, v in report["variants"].items()}
    ends = {name: end for name, end in ends.items() if math.isfinite(end)}
    said = f" The {report['reference']['name']} has {value}: to go beyond that is no better."
    if len(ends) < 2:
        return said
    name = min(ends, key=lambda name: abs(ends[name] - point[measure.key]))
    return f"{said} Nearest to it is {isolated(name)}, {short_number(ends[name])}."


def _best_in_words(report: Report) -> str:
    at, measure = report["best"][-1], measure_in(report)
    where = f"At {at['context']:,} {context_unit(report)} of {terms_in(report).of}"
    name, most = at["best"], "lowest" if measure.best is min else "highest"
    if name is None:
        return f"{where} no variant has a finite {measure.name}."
    points = report["variants"][name]["contexts"]
    point = next(p for p in points if p["context"] == at["context"])
    between = interval(point[measure.interval])
    name = isolated(name)
    value = short_number(point[measure.key]) + (f" (95% interval {between})" if between else "")
    if at["finite"] == [at["best"]]:
        return f"{where} {name} has a {measure.name} of {value}."
    if not at["known"]:
        return (
            f"{where} {name} has the {most} {measure.name} of these runs, {value}. Whether another "
            "training would order the variants so is not known: not all were trained several times."
        )
    if not at["bold"]:
        return (
            f"{where} no variant is told apart from {name}, whose {measure.name} is the {most}: "
            f"{value}."
        )
    others = [isolated(n) for n in at["bold"] if n != at["best"]]
    tie = f"; {listed(others)} cannot be told apart from it" if others else ""
    return f"{where} {name} has the {most} {measure.name}: {value}{tie}."


def shape_in_words(report: Report) -> str:
    """How much was measured: documents, spans, tokens, seeds."""
    variants = report["variants"].values()
    points = [p for v in variants for p in v["contexts"]]
    tokens = _range([p["tokens"] for p in points], "token")
    terms = terms_in(report)
    spans = _range([p["spans"] for p in points], terms.part)
    documents = _range([p["documents"] for p in points], terms.document)
    seeds = _range([v["seeds"] for v in variants], "seed")
    return f"Measured at each {terms.short}: {tokens} in {spans} of {documents}; {seeds} a variant."


def bands_in_words(report: Report) -> str:
    """What the intervals are over, and what they leave out."""
    several = [v["seeds"] > 1 for v in report["variants"].values() if v["trainings"]]
    over = f"Bands are 95% intervals over {terms_in(report).document}s"
    if not several:
        return f"{over}; published weights are taken as they are."
    if all(several):
        return f"{over} and seeds together."
    left_out = "what another training would change is not included"
    if any(several):
        return f"{over}, and over seeds where a variant has several; elsewhere {left_out}."
    return f"{over}: {left_out}, since each variant was trained once."


def trained_in_words(report: Report) -> str:
    """Which points count as longer than trained."""
    said = (
        "Full markers: no token was predicted from more of them than the variant was trained on; "
        "hollow ones: some were."
    )
    variants = report["variants"].values()
    spread = any(v["setup"]["positions"] for v in variants)
    rows = " Where training spread positions out, the length of its rows counts all the same."
    published = any(v["published"] for v in variants)
    config = " Of published weights, what their config says that they read counts as training."
    return said + rows * spread + config * published


def ties_in_words(report: Report) -> str:
    """What bold means in the table of the measure."""
    if any(at["bold"] for at in report["best"]):
        return (
            "Bold: the best of a column, and all that are not told apart from it; where nothing is "
            "bold, nothing is told apart from the best, or some variants were trained only once."
        )
    if len(report["variants"]) == 1:
        return ""
    if all(at["known"] for at in report["best"]):
        return "Nothing is bold: no variant is told apart from the best of its column."
    return (
        "Nothing is bold: variants that were trained apart, once each, cannot be ranked, since "
        "another seed might change their order (--seeds 3)."
    )


def gains_in_words(report: Report) -> str:
    """What the picture and the table of gains show."""
    shortest = context_lengths(report)[0]
    side = "Below" if measure_in(report).best is min else "Above"
    return (
        f"{_compared(report)} the same variant's at {shortest:,} {context_unit(report)}, over the "
        f"same targets: what it gains by reading on. {side} the line, context helps. "
        "Where a variant was trained once, this is said of these weights. "
        f"{_marks(report)}"
    )


def comparisons_in_words(report: Report) -> str:
    """What the picture and the table of differences show, and which of them are marked."""
    compared = [x for points in report["differences"]["variants"].values() for x in points]
    known = [x["training_chance"] for x in compared]
    above = any(v["gains"] for v in report["variants"].values())
    marks = "Marks as above." if above else _marks(report)
    first, document = isolated(report["differences"]["against"]), terms_in(report).document
    said = (
        f"{_compared(report)} that of {first}. {document.capitalize()}s are paired, so "
        "this can tell apart two curves whose own bands overlap; seeds are paired where one "
        "variant starts from the other, or both from the same third. "
    )
    if all(known):
        return said + marks
    once = (
        "Variants that were trained apart, once each, have intervals over "
        f"{document}s alone: what another training would change is not included, and no difference "
        "between them is marked. "
    )
    return said + once + (marks if any(known) else "")


def speeds_in_words(report: Report) -> str:
    """Of which steps the speeds are, and whose machine was busy."""
    said = (
        "Tokens / s leave compilation out: those of the median step, and below it of the best (one "
        "step in twenty was faster)."
    )
    speeds = {
        name: v["tokens_per_second"] / v["best_tokens_per_second"]
        for name, v in report["variants"].items()
        if v["tokens_per_second"] is not None
    }
    busy = [name for name, share in speeds.items() if share < BUSY]
    if not busy:
        return said
    who = "all variants" if busy == list(speeds) else listed([isolated(n) for n in busy])
    least, more = min(speeds[n] for n in busy), " or more" * (len(busy) > 1)
    return (
        f"{said} While {who} trained, the machine was busy with something else: the median step "
        f"had {least:.0%} of the best one's speed{more}. "
        "Seconds are too many there, and the best step is the fairer one to compare."
    )


def weights_in_words(report: Report) -> str:
    """What a document weighs in a mean."""
    measure, document = measure_in(report), terms_in(report).document
    low, high = report["document_weights"]
    each = f"all {document}s weigh the same"
    if measure.per != "prompts":
        each += f", {plural(low, measure.per[:-1])} each"
    if low < high:
        each = (
            f"a {document} weighs by what is scored of it, {low:,} to {high:,} {measure.per} here"
        )
    seeds = " Of several seeds, the mean is taken before the exponential." * (
        measure.compared == "ratio" and any(v["seeds"] > 1 for v in report["variants"].values())
    )
    return (
        f"{measure.formula}; {each}.{seeds} Intervals are Student's t over {document}s and over "
        "seeds: the two variances are added, each with its own quantile."
    )


def _marks(report: Report) -> str:
    family = report["family"]
    any_gains = any(v["gains"] for v in report["variants"].values())
    gains = ", and each variant's contexts against its shortest" * any_gains
    return (
        "▼ and ▲ mark what is lower or higher than equal. Holm's method holds the chance that any "
        f"mark of this page is wrong at {family['level']:.0%}, over "
        f"{plural(family['comparisons'], 'comparison')}: all pairs of variants that can be "
        f"compared, at each {terms_in(report).short}{gains}. The intervals are 95% each, and not "
        "widened for their number."
    )


def _compared(report: Report) -> str:
    measure = measure_in(report)
    how = "divided by" if measure.compared == "ratio" else "less"
    return f"{measure.name.capitalize()} {how}"


def _range(counts: list[int], noun: str) -> str:
    low, high = min(counts), max(counts)
    return plural(low, noun) if low == high else f"{low:,} to {plural(high, noun)}"
