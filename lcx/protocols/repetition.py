"""How texts that a model writes repeat themselves and each other, by how long they have become."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from lcx.decoding import Decoding, Greedy, Search
from lcx.protocols.base import (
    Counted,
    EvaluationProtocol,
    Excerpt,
    Ids,
    Samples,
    Score,
    Terms,
    Text,
    Writes,
    check_contexts,
    with_bos,
)
from lcx.protocols.measures import Measure
from lcx.repetition import RepetitionGuard, StopThere
from lcx.repetition.measures import (
    DIVERSITY,
    distinct,
    distinct_of_all,
    diversity,
    entropy,
    repeated,
    same_as_before,
    seq_rep,
    text_diversity,
    uniq,
)
from lcx.repetition.ratios import Ratio
from lcx.repetition.samples import by_prompt, self_bleu, similarities
from lcx.repetition.sentences import lines, sentences

SHORTEST = max(DIVERSITY)
"""Tokens: a shorter text has no 4-gram."""

Decode = Callable[[Ids], bytes]


@dataclass(frozen=True)
class Repetition(EvaluationProtocol):
    """Each variant writes on from the same prompts; measured is how it repeats itself.

    A prompt is the first `prompt` tokens of a document, after BOS. A text is measured as it stood
    after each of the `lengths`, and so is what the document's author wrote there. Variants may
    differ in `decoding` and `guard` and stand on one page.
    """

    prompt: int = 64
    """Tokens."""
    lengths: tuple[int, ...] = (128, 256, 512)
    """Tokens written after the prompt."""
    decoding: Decoding | Search = Greedy()
    guard: RepetitionGuard | None = None
    """What is done to a text that loops, before it is measured."""
    judge: str | None = None
    """A variant of the same file and data, whose perplexity of all texts is told, too."""
    samples: int = 1
    """Texts after each prompt. From 2 on they are also compared with each other."""
    documents: int | None = 32
    split: Literal["validation", "test"] = "test"
    seed: int = 0

    def __post_init__(self):
        check_contexts("Repetition", self.lengths, self.documents, "lengths")
        if self.lengths[0] < SHORTEST:
            raise ValueError(
                f"Repetition: lengths must be at least {SHORTEST}, the tokens of a "
                f"{SHORTEST}-gram, not {self.lengths}"
            )
        for name in ("prompt", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Repetition: {name} must be at least 1, not {getattr(self, name)}"
                )
        if self.guard is not None and isinstance(self.guard.act, StopThere):
            raise ValueError(
                "Repetition: a guard that ends texts leaves shorter ones, which are not to be "
                "compared; let it act=Resample(Temperature(1.0)), or Separate()"
            )
        if self.samples > 1 and not self.decoding.draws:
            raise ValueError(
                f"Repetition: {type(self.decoding).__name__} draws nothing here, so "
                f"{self.samples} samples of a prompt would be the same: take samples=1, or a "
                "decoding with a temperature above 0, such as TopP(0.9)"
            )

    @property
    def contexts(self) -> tuple[int, ...]:
        return self.lengths

    @property
    def length(self) -> int:
        return self.prompt + self.lengths[-1]

    @property
    def longest(self) -> int:
        return 1 + self.length

    @property
    def writes(self) -> Writes:
        return Writes(self.decoding, self.guard, self.samples, self.seed)

    @property
    def may_differ(self) -> tuple[str, ...]:
        return "decoding", "guard"

    @property
    def terms(self) -> Terms:
        return Terms(
            axis="generated length",
            short="length",
            of="generated text",
            document="prompt",
            part="text",
            reference="human continuation",
        )

    @property
    def measures(self) -> tuple[Measure, ...]:
        of_a_text = tuple(measure for measure, _ in OF_A_TEXT)
        of_samples = OF_SAMPLES if self.samples > 1 else ()
        judged = () if self.judge is None else (JUDGED,)
        return (*of_a_text, *judged, *of_samples, BETWEEN, *(measure for measure, _ in OF_ALL))

    @property
    def words(self) -> str:
        texts = "a text" if self.samples == 1 else f"{self.samples} texts"
        return (
            f"A prompt is the first {self.prompt} tokens of a document. After each, every variant "
            f"writes {texts} of {self.lengths[-1]} tokens, and its author's own continuation "
            "stands beside them. All are measured as they stood after each generated length. "
            "Numbers are means over texts (macro); those of n-grams would be the same pooled, "
            "since all texts of a point are equally long, but for one that a guard had to end. "
            "What is of all texts as one takes the first text of each prompt, and has no interval."
        )

    def excerpts(self, text: Text, bos: int) -> Iterator[Excerpt]:
        first = 1 + self.prompt
        scores = tuple(Score(c, first, first + c) for c in self.lengths)
        yield Excerpt(with_bos(bos, text.ids[: self.length]), scores)

    def counted(self, samples: Samples, decode: Decode) -> Counted:
        texts = [text for of_one in samples for text in of_one]
        prompts = [i for i, of_one in enumerate(samples) for _ in of_one]
        alike = by_prompt(similarities(texts), prompts)
        within = np.where(alike.within.whole > 0, alike.within.part, np.nan)
        within /= np.maximum(alike.within.whole, 1)
        between = alike.between.part / np.maximum(alike.between.whole, 1)
        several = {
            "self_bleu": [
                float(self_bleu(of_one).mean()) if len(of_one) > 1 else np.nan for of_one in samples
            ],
            "shared_within": within,
            "shared_between": pseudo_values(between),
        }
        found = [
            {
                **{
                    measure.sums: float(np.mean([_share(of(text, decode)) for text in of_one]))
                    for measure, of in OF_A_TEXT
                },
                **{key: float(values[i]) for key, values in several.items()},
            }
            for i, of_one in enumerate(samples)
        ]
        first = [of_one[0] for of_one in samples]
        return Counted(found, {measure.sums: float(of(first)) for measure, of in OF_ALL})


def pseudo_values(means: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """From each prompt's mean similarity to all others to jackknife pseudo-values.

    Every pair counts for both of its prompts, so the means scatter half as much as they would if
    they were independent (Hoeffding 1948). These scatter as much as they should, about the same
    mean. NaN for fewer than 3 prompts.
    """
    n = len(means)
    if n < 3:
        return np.full(n, np.nan)
    return (2 * (n - 1) * means - n * means.mean()) / (n - 2)


def _share(ratio: Ratio) -> float:
    """0 where there is nothing to count: blanks repeat no sentence, and no line."""
    return ratio.part / ratio.whole if ratio.whole else 0.0


def _said(ids: Ids, decode: Decode) -> str:
    return decode(ids).decode(errors="replace")


def _measure(
    name: str,
    key: str,
    formula: str,
    better: Literal["lower", "higher"] = "lower",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    per: Literal["prompts", "all"] = "prompts",
) -> Measure:
    return Measure(name, key, f"{key}_ci95", key, formula, per, better, bounds=bounds)


OF_A_TEXT: tuple[tuple[Measure, Callable[[Ids, Decode], Ratio]], ...] = (
    (
        _measure(
            "share of repeated 4-grams",
            "seq_rep_4",
            "A 4-gram of tokens is repeated if it stands in the same text before (seq-rep-4)",
        ),
        lambda ids, _: seq_rep(ids, 4),
    ),
    (
        _measure(
            "share of repeated sentences",
            "repeated_sentences",
            "A sentence is repeated if it stands in the same text before, in whatever case",
        ),
        lambda ids, decode: repeated(sentences(_said(ids, decode))),
    ),
    (
        _measure(
            "share of repeated lines",
            "repeated_lines",
            "A line that is not blank is repeated if it stands in the same text before",
        ),
        lambda ids, decode: repeated(lines(_said(ids, decode))),
    ),
    (
        _measure(
            "share of tokens equal to the last",
            "same_token",
            "How many tokens of a text equal the one right before them",
        ),
        lambda ids, _: same_as_before(ids),
    ),
    (
        _measure(
            "diversity",
            "diversity",
            "Diversity is the product, over n = 2, 3 and 4, of the share of a text's n-grams that "
            "are not repeated",
            "higher",
        ),
        lambda ids, _: text_diversity(ids),
    ),
    (
        _measure(
            "distinct-2",
            "distinct_2",
            "Distinct-2 is the number of different 2-grams in a text over that of its tokens",
            "higher",
        ),
        lambda ids, _: distinct(ids, 2),
    ),
    (
        _measure(
            "entropy (bits per token)",
            "entropy",
            "Entropy is that of a text's own frequencies of tokens",
            "higher",
            bounds=None,
        ),
        lambda ids, _: entropy(ids),
    ),
)
"""Of one text; a prompt's number is the mean over its samples."""

JUDGED = Measure(
    name="perplexity under the judge",
    key="judged",
    interval="judged_ci95",
    sums="judged",
    formula="The judge's perplexity is of the tokens written, after the prompt; neither far below "
    "nor far above that of what people wrote is good",
    scale="exponential",
)
OF_SAMPLES = (
    _measure(
        "self-BLEU",
        "self_bleu",
        "Self-BLEU is the BLEU of each text with the other texts of its prompt as references: 1 if "
        "it could be put together from them",
    ),
    _measure(
        "4-grams shared by texts of one prompt",
        "shared_within",
        "Of the different 4-grams of two texts of the same prompt, the share that both have",
    ),
)
BETWEEN = _measure(
    "4-grams shared by texts of different prompts",
    "shared_between",
    "Of the different 4-grams of two texts of different prompts, the share that both have",
)
OF_ALL: tuple[tuple[Measure, Callable[[list[Ids]], float]], ...] = (
    (
        _measure(
            "diversity, pooled",
            "pooled_diversity",
            "Diversity of all texts together: each n's repeated n-grams are summed over texts "
            "before they are divided, and the product is taken of these",
            "higher",
            per="all",
        ),
        lambda texts: diversity(texts, "pooled"),
    ),
    (
        _measure(
            "distinct-2 of all texts",
            "distinct_2_of_all",
            "Distinct-2 of all texts as one: a 2-gram counts once, whichever texts it stands in",
            "higher",
            per="all",
        ),
        lambda texts: distinct_of_all(texts, 2),
    ),
    (
        _measure(
            "different tokens in all texts",
            "uniq_seq",
            "How many different tokens there are in all texts together (uniq-seq)",
            "higher",
            bounds=None,
            per="all",
        ),
        lambda texts: float(uniq(texts)),
    ),
)
"""Of one text of each prompt."""
