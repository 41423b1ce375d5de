"""Searches written out: NumPy, in float64, a text at a time, the whole text read for each token."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lcx.model import LM
from lcx.types import Batch, Params

Reads = Callable[[list[int]], tuple[np.ndarray, np.ndarray]]
"""Of a text: what the head reads of each token, and log-probabilities of the next one."""


def reads(model: LM, params: Params, most: int) -> Callable[[int], Reads]:
    """Of texts of up to `most` tokens, by how many they will have become; one compilation."""

    @jax.jit
    def read(tokens, last, becomes):
        x = model.hidden(params, Batch(tokens, lengths=jnp.full(tokens.shape, becomes))).x
        return x[0], jax.nn.log_softmax(model.logits(params, x[:, last])[0])

    def of(becomes, text):
        padded = np.zeros((1, most), np.int32)
        padded[0, : len(text)] = text
        hidden, log_p = read(padded, len(text) - 1, becomes)
        return np.asarray(hidden, np.float64)[: len(text)], np.asarray(log_p, np.float64)

    return lambda becomes: partial(of, becomes)


class Beam(NamedTuple):
    log_p: float
    written: list[int]


def beams(
    of: Reads, prompt: list[int], new: int, k: int, penalty: float, stop: set[int]
) -> list[tuple[float, list[int]]]:
    """Scores and texts, the best first."""
    going, ended = [Beam(0.0, [])], []
    for length in range(1, new + 1):
        longer = [
            Beam(beam.log_p + lp, [*beam.written, token])
            for beam in going
            for token, lp in enumerate(of([*prompt, *beam.written])[1])
        ]
        longer.sort(key=lambda beam: -beam.log_p)
        going = []
        for rank, beam in enumerate(longer):
            if beam.written[-1] in stop or length == new:
                if rank < k:
                    text = beam.written[:-1] if beam.written[-1] in stop else beam.written
                    ended.append((beam.log_p / length**penalty, text))
            elif len(going) < k:
                going.append(beam)
        ended = sorted(ended, key=lambda found: -found[0])[:k]
        if going and len(ended) == k and going[0].log_p / length**penalty <= ended[-1][0]:
            break
    return ended


def contrastive(of: Reads, prompt: list[int], new: int, k: int, alpha: float) -> list[int]:
    """Su et al. 2022, equation 5, word for word."""
    text = list(prompt)
    for _ in range(new):
        hidden, log_p = of(text)
        scored = []
        for v in np.argsort(-log_p)[:k]:
            h = of([*text, int(v)])[0][-1]
            cos = [h @ g / (np.linalg.norm(h) * np.linalg.norm(g)) for g in hidden]
            scored.append(((1 - alpha) * np.exp(log_p[v]) - alpha * max(cos), int(v)))
        text.append(max(scored)[1])
    return text[len(prompt) :]
