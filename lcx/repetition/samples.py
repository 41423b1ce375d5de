"""How alike several texts are: samples of one prompt, texts of different prompts."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lcx.repetition.ngrams import Numbers, Tokens, ngrams
from lcx.repetition.ratios import Ratios

Similarities = Float[np.ndarray, "texts texts"]


def self_bleu(samples: Sequence[Tokens], n: int = 4) -> Float[np.ndarray, " texts"]:
    """The BLEU of each sample with all others as references (Zhu et al. 2018, arXiv:1802.01886).

    1: each could be put together from the others; 0: no token is shared. BLEU is Papineni et al.'s
    2002 up to n-grams, all weighing the same, with the closest reference length; where nothing
    matches 0.1 matches do (Chen and Cherry 2014, method 1), as in Texygen, which takes NLTK's. It
    grows with the number of samples and with their length: compare equal ones. For an interval over
    prompts take the mean of each prompt's samples. Raises ValueError for less than 2 samples.
    """
    if len(samples) < 2:
        raise ValueError(f"self-BLEU compares samples: at least 2 are needed, not {len(samples)}")
    if n < 1:
        raise ValueError(f"self-BLEU: n must be at least 1, not {n}")
    some = _clipped_matches(ngrams(samples, 1)) > 0
    logs = np.zeros(len(samples))
    for k in range(1, n + 1):
        found = ngrams(samples, k)
        matches = _clipped_matches(found)
        total = np.maximum([len(x) for x in found], 1)
        logs += np.log(np.where(matches > 0, matches, 0.1) / total) / n
    lengths = [len(sample) for sample in samples]
    return np.where(some, np.exp(logs + _brevity(lengths)), 0.0)


def _clipped_matches(found: Sequence[Numbers]) -> Float[np.ndarray, " texts"]:
    """Each text's n-grams, each as often as it stands in that other text that has most of it."""
    size = len(found)
    owner = np.repeat(np.arange(size), [len(x) for x in found])
    pairs, counts = np.unique(np.concatenate(found) * size + owner, return_counts=True)
    gram, owner = np.divmod(pairs, size)
    order = np.lexsort((counts, gram))  # by n-gram, the text that has most of it last
    gram, owner, counts = gram[order], owner[order], counts[order]
    last = np.searchsorted(gram, gram, side="right") - 1
    second = np.where(np.searchsorted(gram, gram) < last, counts[last - 1], 0)
    others = np.where(np.arange(len(gram)) == last, second, counts[last])
    return np.bincount(owner, np.minimum(counts, others), minlength=size).astype(float)


def _brevity(lengths: Sequence[int]) -> Float[np.ndarray, " texts"]:
    """The logarithm of BLEU's penalty for a text shorter than the reference nearest to it."""
    logs = np.zeros(len(lengths))
    for i, length in enumerate(lengths):
        others = [other for j, other in enumerate(lengths) if j != i]
        closest = min(others, key=lambda other: (abs(other - length), other))
        logs[i] = min(0.0, 1 - closest / length) if length else -math.inf
    return logs


def similarities(texts: Sequence[Tokens], n: int = 4) -> Similarities:
    """Of each pair the Jaccard similarity of their sets of n-grams: shared / in either.

    NaN for two texts that both have none.
    """
    from scipy.sparse import csr_array

    found = [np.unique(x) for x in ngrams(texts, n)]
    sizes = np.array([len(x) for x in found], int)
    columns = np.concatenate([np.zeros(0, int), *found])
    shape = (len(found), 1 + int(columns.max(initial=0)))
    has = csr_array((np.ones(len(columns)), columns, np.append(0, np.cumsum(sizes))), shape=shape)
    shared = (has @ has.T).toarray()
    either = sizes[:, None] + sizes - shared
    return np.divide(shared, either, out=np.full_like(shared, np.nan), where=either > 0)


class Alike(NamedTuple):
    """Similarity by prompt, in the order in which these are first named; `whole` counts pairs."""

    within: Ratios
    """To the other samples of the same prompt; no pairs where there is but one."""
    between: Ratios
    """To the texts of other prompts. Each pair counts for both of its prompts: the mean's standard
    error is about twice what independent numbers would have (Hoeffding 1948 on U-statistics)."""


def by_prompt(alike: Similarities, prompts: Sequence[Hashable]) -> Alike:
    """Means of similarities within and between prompts, to be averaged as "macro".

    prompts: of each text, its prompt or a name of it.
    """
    if len(prompts) != len(alike):
        raise ValueError(f"a prompt for each text: {len(prompts)} prompts, {len(alike)} texts")
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    of = np.array([number[prompt] for prompt in prompts], int)
    member = (of == np.arange(len(number))[:, None]).astype(float)  # [prompt, text]
    compared = np.isfinite(alike) & ~np.eye(len(alike), dtype=bool)
    sums = member @ np.where(compared, alike, 0.0)
    pairs = member @ compared
    own_sums, own_pairs = ((x * member).sum(axis=1) for x in (sums, pairs))
    return Alike(
        within=Ratios(own_sums, own_pairs),
        between=Ratios(sums.sum(axis=1) - own_sums, pairs.sum(axis=1) - own_pairs),
    )
