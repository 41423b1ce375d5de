"""Timing calls that take turns, so that a noisy machine disturbs all of them."""

import time
from collections.abc import Callable

import numpy as np

ROUNDS, CALLS = 6, 3


def fastest(
    *calls: Callable,
    clock: Callable[[], float] = time.perf_counter,
    rounds: int = ROUNDS,
    each: int = CALLS,
) -> list[float]:
    """Seconds of the fastest call of each, after one that compiles."""
    best = [np.inf] * len(calls)
    for call in calls:
        call()
    for _ in range(rounds):
        for i, call in enumerate(calls):
            for _ in range(each):
                began = clock()
                call()
                best[i] = min(best[i], clock() - began)
    return best
