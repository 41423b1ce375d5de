"""Perplexity against context length, by streaming each window through the model in pieces.

Memory grows with the model's state, never with the square of the window. One compilation of each
of two functions serves all long windows; shorter ones are read in one piece of a quarter or a
sixteenth of `PIECE`, each of which takes a compilation more.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from rich.console import Console

from lcx.data import Texts
from lcx.data.cache import Digest
from lcx.experiment import Experiment
from lcx.loss import LOGITS, TokenScores, token_scores
from lcx.mesh import BATCH, Mesh, make_mesh, place
from lcx.mesh import ROWS as ROWS_OF_MESH
from lcx.metrics import ContextScore, DocumentScore, context_score
from lcx.model import LM
from lcx.processes import Preempted, Preemption
from lcx.protocols import Window
from lcx.seqpar import CUT, WHOLE, sharded
from lcx.train import progress
from lcx.types import Params, State, tree_bytes

PIECE = 512
"""Tokens streamed at a time, of a window that has as many."""
ROWS = 8
"""At most this many windows of PIECE tokens side by side; as many more as they are shorter."""
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
    preemption: Preemption | None = None,
) -> tuple[list[ContextScore], float]:
    """One score per context length of the experiment's protocol, and the seconds it took.

    Raises ValueError where no document is long enough; Preempted where `preemption` says that this
    process has to end.
    """
    began = time.perf_counter()
    protocol, bos = experiment.evaluation, corpus.tokenizer.bos
    texts = corpus.targets(protocol).texts
    jobs = [Job(i, w) for i, text in enumerate(texts) for w in protocol.windows(text, bos)]
    sums: dict[int, dict[int, DocumentScore]] = defaultdict(
        lambda: {
            i: DocumentScore(name=text.name, spans=text.parts, nll=0.0, tokens=0, bytes=0, hits=0)
            for i, text in enumerate(texts)
        }
    )
    reach: dict[int, int] = defaultdict(int)
    streamer = Streamer(experiment.model, params, experiment.mesh)
    with jax.set_mesh(streamer.mesh), progress(console or Console()) as bar:
        total = sum(len(job.window.tokens) for job in jobs)
        task = bar.add_task(f"{name}, evaluating", total=total, note="tokens")
        for job, nll, hit in streamer.score(jobs):
            if preemption is not None and preemption.reached():
                raise Preempted(f"{name}: told to end; its evaluation begins anew next time")
            bar.advance(task, len(job.window.tokens))
            for score in job.window.scores:
                reach[score.context] = max(reach[score.context], score.last - 1)
                entry = sums[score.context][job.document]
                scored = job.window.tokens[score.first : score.last]
                entry["nll"] += float(nll[score.first : score.last].sum(dtype=np.float64))
                entry["hits"] += int(hit[score.first : score.last].sum())
                entry["tokens"] += len(scored)
                entry["bytes"] += int(corpus.tokenizer.byte_lengths[scored].sum())
    scores = [context_score(c, list(sums[c].values()), reach[c]) for c in protocol.contexts]
    return scores, time.perf_counter() - began


class Streamer:
    """Reads windows in pieces, several side by side, with the model's state."""

    def __init__(self, model: LM, params: Params, cut: Mesh):
        self._model, self._params, self._cut = model, params, cut
        self.mesh = make_mesh(cut)
        mesh, shards = self.mesh, cut.shards
        self._whole = NamedSharding(mesh, WHOLE)
        self._tokens = NamedSharding(mesh, BATCH)

        def state_of(lengths: Int[Array, " B"], capacity: int) -> State:
            return model.init_state(len(lengths), capacity, lengths)

        def advance(params, tokens, positions, state):
            return model.hidden(params, tokens, positions, state=state, shards=shards)

        # every shard of a sequence keeps the state whole; its rows lie where the tokens' do
        abstract = jax.eval_shape(partial(state_of, capacity=1), jnp.zeros(1, jnp.int32))
        rows = PartitionSpec(ROWS_OF_MESH)
        of_state = jax.tree.map(
            lambda a: NamedSharding(mesh, rows) if a.ndim else self._whole, abstract
        )
        self._state: Callable = jax.jit(state_of, static_argnums=1, out_shardings=of_state)
        self._advance: Callable = jax.jit(
            sharded(advance, shards, (WHOLE, CUT, CUT, WHOLE), (CUT, WHOLE)),
            donate_argnums=3,
            out_shardings=(self._tokens, of_state),
        )
        scores = sharded(partial(_scores_in_pieces, model), shards, (WHOLE, CUT, CUT), CUT)
        self._scores: Callable = jax.jit(scores, out_shardings=self._whole)

    def piece(self, tokens: int) -> int:
        """In pieces of how many tokens so many are read: a multiple of the shards."""
        sizes = (PIECE // 16, PIECE // 4, PIECE)
        size = next((size for size in sizes if size >= tokens), PIECE)
        return -(-size // self._cut.seq) * self._cut.seq

    def rows(self, piece: int, capacity: int) -> int:
        """How many windows are read side by side."""
        one = jax.eval_shape(partial(self._model.init_state, 1, capacity))
        room = STATE_BYTES // max(tree_bytes(one), 1)
        rows = int(np.clip(room, 1, ROWS * PIECE // piece))
        return -(-rows // self._cut.rows) * self._cut.rows

    def score(
        self, jobs: list[Job]
    ) -> Iterator[tuple[Job, Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]]:
        """Each job with the negative log-likelihood of each of its window's tokens, in nats.

        And whether no other token was likelier. Tokens that no score of the window asks for have 0.
        """
        jobs = sorted(jobs, key=lambda job: len(job.window.tokens))
        for piece, alike in groupby(jobs, lambda job: self.piece(len(job.window.tokens) - 1)):
            alike = list(alike)
            capacity = -(-(len(alike[-1].window.tokens) - 1) // piece) * piece
            rows = self.rows(piece, capacity)
            for at in range(0, len(alike), rows):
                group = alike[at : at + rows]
                windows = [job.window for job in group]
                yield from zip(group, *self._read(windows, piece, rows, capacity), strict=True)

    def _read(
        self, windows: list[Window], piece: int, rows: int, capacity: int
    ) -> tuple[Float[np.ndarray, "B n"], Bool[np.ndarray, "B n"]]:
        """Windows side by side, padded at the end, where padding cannot reach any scored token."""
        longest = max(len(w.tokens) for w in windows)
        pieces = -(-(longest - 1) // piece)
        tokens = np.zeros((rows, pieces * piece + 1), np.int32)
        wanted = np.zeros(tokens.shape, bool)
        for row, window in enumerate(windows):
            tokens[row, : len(window.tokens)] = window.tokens
            for score in window.scores:
                wanted[row, score.first : score.last] = True
        nll, hit = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, bool)
        lengths = np.ones(rows, np.int32)
        lengths[: len(windows)] = [len(w.tokens) - 1 for w in windows]  # the last is not read
        state = self._state(place(lengths, self._whole), capacity)
        for first in range(0, pieces * piece, piece):
            targets = slice(first + 1, first + 1 + piece)
            # padding stands where the last token does: at a position that there is
            at = np.minimum(first + np.arange(piece, dtype=np.int32), lengths[:, None] - 1)
            read = (place(a, self._tokens) for a in (tokens[:, first : first + piece], at))
            x, state = self._advance(self._params, *read, state)
            if wanted[:, targets].any():
                asked = place(tokens[:, targets], self._tokens)
                scores = self._scores(self._params, x, asked)
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


def describe_data(experiment: Experiment, corpus: Texts) -> dict:
    """What a result says of the data that it was measured on."""
    texts, left_out = corpus.targets(experiment.evaluation)
    # the same spans of the same documents, whatever the tokenizer
    targets = Digest(*(part for text in texts for part in (text.name, str(text.spans))))
    return {
        **corpus.describe(),
        "fingerprint": corpus.fingerprint,
        "split": experiment.evaluation.split,
        "documents": len(texts),
        "spans": sum(text.parts for text in texts),
        "targets": str(targets),
        "left_out": left_out,
    }
