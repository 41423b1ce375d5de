"""A protocol's measures against context length, of excerpts streamed through the model."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console

from lcx.cache import Digest
from lcx.data import Texts
from lcx.data.task import Vocabulary
from lcx.evaluation.draft import Draft, Scored
from lcx.evaluation.metrics import ContextScore, DocumentScore, context_score
from lcx.experiment import Experiment
from lcx.logits import over_logits
from lcx.model import LM
from lcx.parallel.mesh import Mesh, place
from lcx.parallel.preemption import Preemption
from lcx.parallel.seqpar import REPLICATED, SHARDED, sharded
from lcx.progress import plain_console, progress
from lcx.protocols import EvaluationProtocol, Excerpt
from lcx.streaming import Streamer
from lcx.types import Params


class Job(NamedTuple):
    """One excerpt of one document."""

    number: int
    document: int
    excerpt: Excerpt


def evaluate(
    experiment: Experiment,
    params: Params,
    corpus: Texts,
    name: str,
    console: Console | None = None,
    preemption: Preemption | None = None,
    draft: Path | None = None,
) -> tuple[list[ContextScore], float]:
    """One score per context length of the experiment's protocol, and the seconds it took.

    draft: a file in which each excerpt's scores are kept as they come; an evaluation that was
    killed, and is started again with the same parameters, protocol and data, goes on from there.

    Raises ValueError where no document is long enough; Preempted where `preemption` says that this
    process has to end.
    """
    began = time.perf_counter()
    protocol, tokenizer = experiment.evaluation, corpus.tokenizer
    texts, bos = corpus.targets(protocol).texts, tokenizer.bos
    excerpts = ((i, w) for i, text in enumerate(texts) for w in protocol.excerpts(text, bos))
    jobs = [Job(number, i, excerpt) for number, (i, excerpt) in enumerate(excerpts)]
    averaged = list(dict.fromkeys(measure.sums for measure in protocol.measures))
    nothing = {"tokens": 0, "bytes": 0, **dict.fromkeys(averaged, 0.0)}
    sums: dict[int, list[DocumentScore]] = {
        c: [{"name": text.name, "spans": text.parts, **nothing} for text in texts]
        for c in protocol.contexts
    }
    reach: dict[int, int] = defaultdict(int)

    def add(found: Scored) -> None:
        for score in found["scores"]:
            context = score["context"]
            reach[context] = max(reach[context], score["reach"])
            entry = sums[context][found["document"]]
            for key in nothing:
                entry[key] += score[key]

    scorer = Scorer(protocol, experiment.model, params, experiment.mesh)
    with (
        Draft(draft) as kept,
        jax.set_mesh(scorer.mesh),
        progress(console or plain_console()) as bar,
    ):
        total = sum(len(job.excerpt.tokens) for job in jobs)
        task = bar.add_task(f"{name}, evaluating", total=total, note="tokens")
        for found in kept.before:
            add(found)
        done = {found["job"] for found in kept.before}
        bar.advance(task, sum(len(jobs[number].excerpt.tokens) for number in done))
        for job, scores in scorer.score([job for job in jobs if job.number not in done]):
            found = _scored(job, scores, averaged, tokenizer)
            add(found)
            kept.write(found)
            done.add(job.number)
            bar.advance(task, len(job.excerpt.tokens))
            if preemption is not None and preemption.reached():
                preemption.end(f"{name}: {len(done)} of {len(jobs)} excerpts are evaluated")
    points = [context_score(c, sums[c], reach[c], protocol.measures) for c in protocol.contexts]
    return points, time.perf_counter() - began


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
