"""Evaluations and training curves for tests of reports: plausible, small, and known in advance."""

import math

import numpy as np

from lcx.evaluation.metrics import Evaluation, about, context_score
from lcx.protocols import SameTargets

QUESTION = """Does <it> hold & how far?

    lcx compare experiments/far.py --out runs/far

Cost: ten minutes.
"""


def evaluation(
    variant: str,
    ppl: dict[int, float],
    train_len: int = 512,
    documents: int = 6,
    seed: int = 0,
    trainings: list[str] | None = None,
    chance: np.random.Generator | None = None,
) -> Evaluation:
    """One run. chance: draws what its seed, and its documents under it, add to its nats."""
    hardness = 0.2 * np.random.default_rng(0).standard_normal(documents)
    hardness -= hardness.mean()
    if chance is not None:
        own = 0.02 * chance.standard_normal(documents)
        hardness = hardness + own + 0.02 * chance.standard_normal()
    points = [
        context_score(
            context,
            [
                {
                    "name": f"d{i}",
                    "nll": 64 * (math.log(x) + float(h)),
                    "tokens": 64,
                    "bytes": 80,
                    "hits": int(64 * min(1, 1 / x)) if x == x else 0,
                    "spans": 1,
                }
                for i, h in enumerate(hardness)
            ],
            context + 64,
            SameTargets().measures,
        )
        for context, x in ppl.items()
    ]
    return {
        "variant": variant,
        "seed": seed,
        "protocol": {"type": "SameTargets", "contexts": list(ppl), "span": 256, "unit": "tokens"},
        "weights": "c0ffee",
        "changed": [],
        "about": about(SameTargets()),
        "data": {"source": "PythonCorpus()", "tokenizer": "Bytes()", "fingerprint": "ab12"},
        "setup": {
            "mixers": ["SoftmaxAttention(heads=4)"],
            "heads": [4],
            "layers": 3,
            "width": 128,
            "vocabulary": 257,
            "length": 512,
            "batch": 4,
            "steps": 450,
            "positions": None,
            "optimizer": "AdamW(peak=0.003)",
            "learning_rate": 3e-3,
            "loss": "CrossEntropy()",
            "loss_unit": "nats per token",
            "init_from": None,
            "changes": [],
        },
        "cost": {
            "parameters": 851_968,
            "tuned_parameters": None,
            "training_flops": 6.5e6,
            "uncounted": [],
            "state_bytes": {str(c): 4096 * c for c in ppl},
        },
        "published": None,
        "trainings": trainings or [variant],
        "train_len": train_len,
        "train_tokens": 8_192_000,
        "train_flops": 5.3e13,
        "train_seconds": 400.0,
        "eval_seconds": 20.0,
        "contexts": points,
        "reference": None,
        "shown": None,
        "environment": {"lcx": "0.1.0", "device": variant},
    }


def runs(variant: str, ppl: dict[int, float], seeds: int, chance: int, **more) -> list[Evaluation]:
    rng = np.random.default_rng(chance)
    return [evaluation(variant, ppl, seed=i, chance=rng, **more) for i in range(seeds)]


def curve(loss: float) -> list[dict[str, float]]:
    """A first step of a minute, for compilation; 0.2 s each after; validation twice."""
    rows = [
        {"step": s, "tokens": 4096.0 * s, "loss": loss + 4 / s, "seconds": 60 + 0.2 * s}
        for s in range(1, 100)
    ]
    for s in (39, 79):
        rows[s]["validation_loss"] = loss + 0.2
    return rows


FAR = {256: 3.7, 448: 3.5, 512: 3.6, 1024: 9.8, 2048: 1.2e5}
LEVEL = {256: 4.6, 448: 4.5, 512: 4.5, 1024: 4.5, 2048: 4.5}
FALLING = {256: 6.2, 448: 5.9, 512: 5.8, 1024: 5.6, 2048: 5.6}


def three(seeds: int, **more) -> list[Evaluation]:
    """A model that breaks beyond its training, one that does not, and a fine-tune of the first."""
    return [
        *runs("softmax", FAR, seeds, chance=1, **more),
        *runs("<rwkv>", LEVEL, seeds, chance=2, **more),
        *runs(
            "tuned", FALLING, seeds, chance=3, train_len=2112, trainings=["softmax", "tuned"],
            **more,
        ),
    ]  # fmt: skip


RESULTS, ONCE = three(3), three(1)
CURVES = {"softmax": [curve(1.2), curve(1.3), curve(1.1)], "<rwkv>": [curve(1.3)] * 3}
