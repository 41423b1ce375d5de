"""Perplexity against context length, by streaming each window through the model in pieces.

Memory grows with the model's state, never with the square of the window. One compilation of each
of two functions serves all context lengths of a variant.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from rich.console import Console

from lcx.data import Texts
from lcx.experiment import Experiment
from lcx.loss import LOGITS, TokenScores, token_scores
from lcx.mesh import make_mesh
from lcx.metrics import ContextScore, DocumentScore, context_score
from lcx.model import LM
from lcx.protocols import Window
from lcx.train import progress
from lcx.types import Params, tree_bytes

PIECE = 512
"""Tokens streamed at a time."""
ROWS = 8
"""At most this many windows side by side."""
STATE_BYTES = 2**28
"""Fewer windows at a time where their states would take more than this (256 MB)."""


class Job(NamedTuple):
    """One window of one document."""

    document: int
    window: Window


def evaluate(
    experiment: Experiment,
    params: Params,
    corpus: Texts,
    name: str,
    console: Console | None = None,
) -> tuple[list[ContextScore], float]:
    """One score per context length of the experiment's protocol, and the seconds it took.

    Raises ValueError where no document is long enough.
    """
    began = time.perf_counter()
    protocol, bos = experiment.evaluation, corpus.tokenizer.bos
    documents = corpus.long_documents(protocol.split, protocol.length)[: protocol.documents]
    jobs = [Job(i, w) for i, (_, ids) in enumerate(documents) for w in protocol.windows(ids, bos)]
    longest = max(len(job.window.tokens) for job in jobs)
    sums: dict[int, dict[int, DocumentScore]] = defaultdict(
        lambda: {
            i: DocumentScore(name=document, nll=0.0, tokens=0, bytes=0, hits=0)
            for i, (document, _) in enumerate(documents)
        }
    )
    with jax.set_mesh(make_mesh(experiment.mesh)), progress(console or Console()) as bar:
        streamer = Streamer(experiment.model, params, longest)
        total = sum(len(job.window.tokens) for job in jobs)
        task = bar.add_task(f"{name}, evaluating", total=total, note="tokens")
        for job, nll, hit in streamer.score(jobs):
            bar.advance(task, len(job.window.tokens))
            for score in job.window.scores:
                entry = sums[score.context][job.document]
                scored = job.window.tokens[score.first : score.last]
                entry["nll"] += float(nll[score.first : score.last].sum(dtype=np.float64))
                entry["hits"] += int(hit[score.first : score.last].sum())
                entry["tokens"] += len(scored)
                entry["bytes"] += int(corpus.tokenizer.byte_lengths[scored].sum())
    scores = [context_score(c, list(sums[c].values())) for c in protocol.contexts]
    return scores, time.perf_counter() - began


class Streamer:
    """Reads windows in pieces of `PIECE` tokens, several side by side, with the model's state."""

    def __init__(self, model: LM, params: Params, longest: int):
        self._model, self._params = model, params
        self._capacity = -(-longest // PIECE) * PIECE
        one = jax.eval_shape(partial(model.init_state, 1, self._capacity))
        self._rows = int(np.clip(STATE_BYTES // max(tree_bytes(one), 1), 1, ROWS))
        self._advance: Callable = jax.jit(
            lambda params, tokens, positions, state: model.hidden(
                params, tokens, positions, state=state
            ),
            donate_argnums=3,
        )
        self._scores: Callable = jax.jit(partial(_scores_in_pieces, model))

    def score(
        self, jobs: list[Job]
    ) -> Iterator[tuple[Job, Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
        """Each job with the negative log-likelihood of each of its window's tokens, in nats.

        And whether no other token was likelier. Tokens that no score of the window asks for have 0.
        """
        jobs = sorted(jobs, key=lambda job: len(job.window.tokens))
        for at in range(0, len(jobs), self._rows):
            group = jobs[at : at + self._rows]
            yield from zip(group, *self._read([job.window for job in group]), strict=True)

    def _read(
        self, windows: list[Window]
    ) -> tuple[Float[np.ndarray, "B n"], Bool[np.ndarray, "B n"]]:
        """Windows side by side, padded at the end, where padding cannot reach any scored token."""
        longest = max(len(w.tokens) for w in windows)
        pieces = -(-(longest - 1) // PIECE)
        tokens = np.zeros((self._rows, pieces * PIECE + 1), np.int32)
        wanted = np.zeros(tokens.shape, bool)
        for row, window in enumerate(windows):
            tokens[row, : len(window.tokens)] = window.tokens
            for score in window.scores:
                wanted[row, score.first : score.last] = True
        nll, hit = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, bool)
        lengths = np.ones(self._rows, np.int32)
        lengths[: len(windows)] = [len(w.tokens) - 1 for w in windows]  # the last is not read
        state = self._model.init_state(self._rows, self._capacity, jnp.asarray(lengths))
        for first in range(0, pieces * PIECE, PIECE):
            targets = slice(first + 1, first + 1 + PIECE)
            # padding stands where the last token does: at a position that there is
            at = np.minimum(first + np.arange(PIECE, dtype=np.int32), lengths[:, None] - 1)
            x, state = self._advance(self._params, tokens[:, first : first + PIECE], at, state)
            if wanted[:, targets].any():
                scores = self._scores(self._params, x, tokens[:, targets])
                nll[:, targets], hit[:, targets] = scores.nll, scores.hit
        n = len(windows)
        return np.where(wanted, nll, 0)[:n], (wanted & hit)[:n]


def _scores_in_pieces(
    model: LM, params: Params, x: Float[Array, "B T D"], targets: Int[Array, "B T"]
) -> TokenScores:
    """As `token_scores`, with at most about LOGITS logits at a time."""
    size = max(1, LOGITS // (x.shape[0] * model.vocab))
    if size >= x.shape[1]:
        return token_scores(model, params, x, targets)

    def one(column):
        return token_scores(model, params, *column)

    by_column = jax.lax.map(one, (jnp.moveaxis(x, 1, 0), targets.T), batch_size=size)
    return jax.tree.map(jnp.transpose, by_column)


def describe_data(experiment: Experiment, corpus: Texts, scores: list[ContextScore]) -> dict:
    """What a result says of the data that it was measured on."""
    return {
        **corpus.describe(),
        "fingerprint": corpus.fingerprint,
        "split": experiment.evaluation.split,
        "documents": len(scores[0]["documents"]),
    }
