"""Evaluation by reading: excerpts streamed through a model, which predicts their targets."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from lcx.data.task import Vocabulary
from lcx.evaluation.draft import Job, Scored
from lcx.evaluation.metrics import DocumentScore, Evaluated, context_score
from lcx.experiment import Experiment
from lcx.logits import over_logits
from lcx.model import LM
from lcx.parallel.mesh import Mesh, place
from lcx.parallel.seqpar import REPLICATED, SHARDED, sharded
from lcx.protocols import EvaluationProtocol, Excerpt, Text
from lcx.streaming import Streamer
from lcx.types import Params, State


class Reading:
    """Scores excerpts as their protocol asks, and sums what they score by document."""

    doing = "evaluating"

    def __init__(self, experiment: Experiment, params: Params, tokenizer: Vocabulary):
        self._protocol, self._tokenizer = experiment.evaluation, tokenizer
        self._averaged = list(dict.fromkeys(m.sums for m in self._protocol.measures))
        self._scorer = Scorer(self._protocol, experiment.model, params, experiment.mesh)

    def work(self, job: Job) -> int:
        """Tokens of one job."""
        return len(job.excerpt.tokens)

    def run(self, jobs: list[Job], done: set[int]) -> Iterator[tuple[int, list[Scored]]]:
        """Does those that are not done; tokens since the last, and jobs that are finished."""
        for job, scores in self._scorer.score([job for job in jobs if job.number not in done]):
            made = self._protocol.per_token(job.excerpt.tokens, scores)
            yield self.work(job), [_scored(job, made, self._averaged, self._tokenizer)]

    def result(self, texts: Sequence[Text], jobs: list[Job], found: list[Scored]) -> Evaluated:
        """The protocol's points, once all jobs have been done."""
        nothing = {"tokens": 0, "bytes": 0, **dict.fromkeys(self._averaged, 0.0)}
        sums: dict[int, list[DocumentScore]] = {
            c: [{"name": text.name, "spans": text.parts, **nothing} for text in texts]
            for c in self._protocol.contexts
        }
        reach: dict[int, int] = defaultdict(int)
        for one in found:
            for score in one["scores"]:
                context = score["context"]
                reach[context] = max(reach[context], score["reach"])
                entry = sums[context][one["document"]]
                for key in nothing:
                    entry[key] += score[key]
        measures = self._protocol.measures
        return Evaluated([context_score(c, sums[c], reach[c], measures) for c in sums])


def _scored(
    job: Job,
    scores: dict[str, Float[np.ndarray, " n"]],
    averaged: list[str],
    tokenizer: Vocabulary,
) -> Scored:
    found = []
    for score in job.excerpt.scores:
        where = slice(score.first, score.last)
        tokens = job.excerpt.tokens[where]
        sums = {key: float(scores[key][where].sum(dtype=np.float64)) for key in averaged}
        found.append(
            {
                "context": score.context,
                "reach": score.last - 1,
                "tokens": len(tokens),
                "bytes": int(tokenizer.byte_lengths[tokens].sum()),
                **sums,
            }
        )
    return {"job": job.number, "document": job.document, "scores": found}


class Lowered(NamedTuple):
    """What texts of one length are read by, to be compiled."""

    advance: Any
    scores: Any
    scored: Any
    """The shapes of what `scores` takes beside the parameters."""
    state: State
    """Its shapes."""
    rows: int
    """Texts side by side."""


class Scorer:
    """Scores the targets of excerpts as a model reads them, several side by side."""

    def __init__(self, protocol: EvaluationProtocol, model: LM, params: Params, cut: Mesh):
        self._params, self._streamer = params, Streamer(model, params, cut)

        def scores(params: Params, x: Float[Array, "B T D"], targets: Int[Array, "B T"]):
            return over_logits(model, params, protocol.scores, x, targets)

        self._scores: Any = jax.jit(
            sharded(scores, cut.shards, (REPLICATED, SHARDED, SHARDED), SHARDED),
            out_shardings=self._streamer.whole,
        )

    def lower(self, longest: int) -> Lowered:
        """What reads and scores texts of so many tokens. Parameters may be shapes."""
        streamer = self._streamer
        piece = streamer.piece(longest - 1)
        capacity = _whole_pieces(longest - 1, piece)
        rows = streamer.rows(piece, capacity)
        advance, tokens, state = streamer.lower(rows, piece, capacity)
        x, _ = advance.out_info
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=streamer.tokens)
        scores = self._scores.lower(self._params, x, tokens)
        return Lowered(advance, scores, (x, tokens), state, rows)

    def score(self, jobs: list[Job]) -> Iterator[tuple[Job, dict[str, Float[np.ndarray, " n"]]]]:
        """Each job with what the protocol's `scores` make of each token of its excerpt, by name.

        Only what a score of the excerpt asks for means something.
        """
        streamer = self._streamer
        jobs = sorted(jobs, key=lambda job: len(job.excerpt.tokens))
        for piece, alike in groupby(jobs, lambda job: streamer.piece(len(job.excerpt.tokens) - 1)):
            alike = list(alike)
            capacity = _whole_pieces(len(alike[-1].excerpt.tokens) - 1, piece)
            rows = streamer.rows(piece, capacity)
            for at in range(0, len(alike), rows):
                group = alike[at : at + rows]
                excerpts = [job.excerpt for job in group]
                with jax.set_mesh(self._streamer.mesh):
                    found = self._read(excerpts, rows, piece, capacity)
                for row, job in enumerate(group):
                    own = slice(len(job.excerpt.tokens))
                    yield job, {name: array[row, own] for name, array in found.items()}

    def _read(
        self, excerpts: list[Excerpt], rows: int, piece: int, capacity: int
    ) -> dict[str, Float[np.ndarray, "B n"]]:
        longest = max(len(e.tokens) for e in excerpts)
        tokens = np.zeros((rows, _whole_pieces(longest - 1, piece) + 1), np.int32)
        wanted = np.zeros(tokens.shape, bool)
        for row, excerpt in enumerate(excerpts):
            tokens[row, : len(excerpt.tokens)] = excerpt.tokens
            for score in excerpt.scores:
                wanted[row, score.first : score.last] = True
        found: dict[str, np.ndarray] = {}
        texts = [e.tokens[:-1] for e in excerpts]  # nothing is predicted from the last
        for i, x in enumerate(self._streamer.read(texts, rows, piece, capacity)):
            targets = slice(1 + i * piece, 1 + (i + 1) * piece)
            if wanted[:, targets].any():
                asked = place(tokens[:, targets], self._streamer.tokens)
                for name, scores in self._scores(self._params, x, asked).items():
                    array = found.setdefault(name, np.zeros(tokens.shape, np.float32))
                    array[:, targets] = scores
        return found


def _whole_pieces(tokens: int, piece: int) -> int:
    """At least so many tokens, in whole pieces."""
    return -(-tokens // piece) * piece
