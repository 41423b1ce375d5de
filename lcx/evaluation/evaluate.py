"""A protocol's measures against context length, of excerpts streamed through the model."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console

from lcx.data import Texts
from lcx.data.cache import Digest
from lcx.evaluation.metrics import ContextScore, DocumentScore, context_score
from lcx.experiment import Experiment
from lcx.logits import over_logits
from lcx.model import LM
from lcx.parallel.mesh import Mesh, place
from lcx.parallel.processes import Preempted, Preemption
from lcx.parallel.seqpar import REPLICATED, SHARDED, sharded
from lcx.progress import progress
from lcx.protocols import EvaluationProtocol, Excerpt
from lcx.streaming import Streamer
from lcx.types import Params


class Job(NamedTuple):
    """One excerpt of one document."""

    document: int
    excerpt: Excerpt


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
    jobs = [Job(i, w) for i, text in enumerate(texts) for w in protocol.excerpts(text, bos)]
    averaged = dict.fromkeys(measure.sums for measure in protocol.measures)
    nothing = {"tokens": 0, "bytes": 0, **dict.fromkeys(averaged, 0.0)}
    sums: dict[int, list[DocumentScore]] = {
        c: [{"name": text.name, "spans": text.parts, **nothing} for text in texts]
        for c in protocol.contexts
    }
    reach: dict[int, int] = defaultdict(int)
    scorer = Scorer(protocol, experiment.model, params, experiment.mesh)
    with jax.set_mesh(scorer.mesh), progress(console or Console()) as bar:
        total = sum(len(job.excerpt.tokens) for job in jobs)
        task = bar.add_task(f"{name}, evaluating", total=total, note="tokens")
        for job, scores in scorer.score(jobs):
            if preemption is not None and preemption.reached():
                raise Preempted(f"{name}: asked to end; its evaluation begins anew next time")
            bar.advance(task, len(job.excerpt.tokens))
            for score in job.excerpt.scores:
                reach[score.context] = max(reach[score.context], score.last - 1)
                entry = sums[score.context][job.document]
                where = slice(score.first, score.last)
                scored = job.excerpt.tokens[where]
                for key in averaged:
                    entry[key] += float(scores[key][where].sum(dtype=np.float64))
                entry["tokens"] += len(scored)
                entry["bytes"] += int(corpus.tokenizer.byte_lengths[scored].sum())
    points = [context_score(c, sums[c], reach[c], protocol.measures) for c in protocol.contexts]
    return points, time.perf_counter() - began


class Scorer:
    """Scores the targets of excerpts as a model reads them, several side by side."""

    def __init__(self, protocol: EvaluationProtocol, model: LM, params: Params, cut: Mesh):
        self._params, self._streamer = params, Streamer(model, params, cut)
        self.mesh = self._streamer.mesh

        def scores(params: Params, x: Float[Array, "B T D"], targets: Int[Array, "B T"]):
            return over_logits(model, params, protocol.scores, x, targets)

        self._scores: Callable = jax.jit(
            sharded(scores, cut.shards, (REPLICATED, SHARDED, SHARDED), SHARDED),
            out_shardings=self._streamer.whole,
        )

    def score(self, jobs: list[Job]) -> Iterator[tuple[Job, dict[str, Float[np.ndarray, " n"]]]]:
        """Each job with what the protocol's `scores` make of each token of its excerpt, by name.

        Only what a score of the excerpt asks for means something.
        """
        streamer = self._streamer
        jobs = sorted(jobs, key=lambda job: len(job.excerpt.tokens))
        for piece, alike in groupby(jobs, lambda job: streamer.piece(len(job.excerpt.tokens) - 1)):
            alike = list(alike)
            capacity = -(-(len(alike[-1].excerpt.tokens) - 1) // piece) * piece
            rows = streamer.rows(piece, capacity)
            for at in range(0, len(alike), rows):
                group = alike[at : at + rows]
                excerpts = [job.excerpt for job in group]
                found = self._read(excerpts, rows, piece, capacity)
                for row, job in enumerate(group):
                    yield job, {name: array[row] for name, array in found.items()}

    def _read(
        self, excerpts: list[Excerpt], rows: int, piece: int, capacity: int
    ) -> dict[str, Float[np.ndarray, "B n"]]:
        longest = max(len(e.tokens) for e in excerpts)
        tokens = np.zeros((rows, -(-(longest - 1) // piece) * piece + 1), np.int32)
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
