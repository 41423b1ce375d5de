"""How often 95% intervals cover the truth, and what Holm's method leaves unmarked (decision 13).

    python benchmarks/intervals.py

Scores are simulated: S seeds are measured on N documents, and the nats of seed s on document d are
the sum of an effect of each and of one of both, normal with the SDs of a case. About five minutes.
"""

import numpy as np
from scipy.special import stdtrit
from scipy.stats import false_discovery_control

from lcx.evaluation.intervals import difference, mean, told_apart

DRAWS, RESAMPLES = 1000, 400
CASES = {  # SD of a seed, of a document, of both together
    "documents decide": (0.02, 0.25, 0.03),
    "seeds decide": (0.2, 0.25, 0.1),
}
RNG = np.random.default_rng(0)


def crossed(seeds: int, documents: int, sds: tuple[float, float, float]) -> np.ndarray:
    """[S, N] nats around 0."""
    seed, document, both = sds
    return (
        seed * RNG.standard_normal((seeds, 1))
        + document * RNG.standard_normal(documents)
        + both * RNG.standard_normal((seeds, documents))
    )


def bootstrap(x: np.ndarray, stretch: bool) -> tuple[float, float]:
    """Percentiles over seeds and documents resampled together (Owen 2007).

    stretch: deviations grow by sqrt(n / (n - 1)), so that the variances are right.
    """
    weights = []
    for n in x.shape:
        drawn = RNG.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
        weights.append(1 / n + (drawn - 1 / n) * np.sqrt(n / (n - 1)) if stretch else drawn)
    low, high = np.quantile(((weights[0] @ x) * weights[1]).sum(axis=1), [0.025, 0.975])
    return low, high


def satterthwaite(x: np.ndarray) -> tuple[float, float]:
    """Student's t of the two variances' sum, with Satterthwaite's degrees of freedom."""
    variances = [x.mean(axis=1 - axis).var(ddof=1) / n for axis, n in enumerate(x.shape)]
    total = sum(variances)
    freedom = total**2 / sum(v**2 / (n - 1) for v, n in zip(variances, x.shape, strict=True))
    half = stdtrit(freedom, 0.975) * np.sqrt(total)
    return x.mean() - half, x.mean() + half


def ours(x: np.ndarray) -> tuple[float, float]:
    return mean(x, np.ones(x.shape[1])).interval()


def coverage() -> None:
    print("case, seeds, documents: % covered by percentile, stretched, Satterthwaite, ours")
    ways = (lambda x: bootstrap(x, False), lambda x: bootstrap(x, True), satterthwaite, ours)
    for name, sds in CASES.items():
        for seeds in (2, 3, 5):
            for documents in (16, 40, 100):
                held = np.zeros(len(ways))
                for _ in range(DRAWS):
                    x = crossed(seeds, documents, sds)
                    held += [low <= 0 <= high for low, high in (way(x) for way in ways)]
                print(name, seeds, documents, np.round(100 * held / DRAWS, 1), flush=True)


def holm(p_values: list[float]) -> np.ndarray:
    return np.array(told_apart(p_values))


def benjamini_hochberg(p_values: list[float]) -> np.ndarray:
    return false_discovery_control(p_values) <= 0.05


def pages(seeds: int, sds: tuple[float, float], gap: float, n: int) -> None:
    """Print, of n pages, how many have a wrong mark, and how many true differences are marked.

    A page compares six variants at eight contexts, two at each of three levels `gap` nats apart.
    Every other variant's seeds have the second SD; most of a seed's effect is that of all contexts.
    """
    methods = (holm, benjamini_hochberg)
    wrong, found = np.zeros(len(methods)), np.zeros(len(methods))
    pairs = [(a, b, c) for a in range(6) for b in range(a) for c in range(8)]
    true = np.array([gap > 0 and a // 2 != b // 2 for a, b, _ in pairs])
    for _ in range(n):
        own = []
        for i in range(6):
            seed = RNG.standard_normal((seeds, 1)) * 0.9 + RNG.standard_normal((seeds, 8)) * 0.45
            documents = 0.05 * RNG.standard_normal((8, 24))
            noise = 0.03 * RNG.standard_normal((seeds, 8, 24))
            own.append(i // 2 * gap + (sds[i % 2] * seed)[..., None] + documents + noise)
        compared = (
            difference(own[a][:, c], own[b][:, c], np.ones(24), paired_runs=False)
            for a, b, c in pairs
        )
        p_values = [estimate.p_value() for estimate in compared]
        for i, method in enumerate(methods):
            marked = method(p_values)
            wrong[i] += (marked & ~true).any()
            found[i] += (marked & true).sum() / max(true.sum(), 1)
    print(seeds, sds, gap, np.round(100 * wrong / n, 1), np.round(100 * found / n, 1), flush=True)


if __name__ == "__main__":
    coverage()
    print(
        "seeds, their SDs, difference: % of pages with a wrong mark, of differences that are marked"
    )
    print("(each by Holm's method, and by Benjamini and Hochberg's)")
    for seeds in (3, 5):
        for sds in ((0.02, 0.02), (0.02, 0.2)):
            pages(seeds, sds, 0.0, 200)
        for gap in (0.05, 0.1, 0.2, 0.4):
            pages(seeds, (0.02, 0.02), gap, 40)
