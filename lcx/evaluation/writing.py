"""Evaluation by writing: a model goes on from prompts, and what it wrote is measured."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from lcx.data import Tokenizer
from lcx.data.task import Vocabulary
from lcx.evaluation.draft import Job, Scored
from lcx.evaluation.metrics import ContextScore, Evaluated, WrittenText, context_score
from lcx.evaluation.reading import Scorer
from lcx.experiment import Experiment
from lcx.generate import Generator
from lcx.model import LM
from lcx.protocols import Excerpt, Score, Text
from lcx.protocols.base import Samples
from lcx.types import Ids, Params

Nats = Float[np.ndarray, "_"]


class Writing:
    """Writes after the prompt of each excerpt, and measures that as the protocol says."""

    doing = "writing"

    def __init__(
        self,
        experiment: Experiment,
        params: Params,
        tokenizer: Vocabulary,
        judge: tuple[LM, Params] | None = None,
    ):
        """Raises ValueError for tokens that stand for no text, and for several processes."""
        protocol, model, mesh = experiment.evaluation, experiment.model, experiment.mesh
        writes = protocol.writes
        assert writes is not None
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError(
                f"{type(protocol).__name__} has text written; these tokens are symbols, which "
                "stand for no text"
            )
        if jax.process_count() > 1:
            raise ValueError(
                f"{type(protocol).__name__} has text written, which one process does: train with "
                "lcx train, then lcx evaluate in a process of its own"
            )
        self._protocol, self._tokenizer, self._writes = protocol, tokenizer, writes
        self._generator = Generator(model, params, writes.decoding, tokenizer=tokenizer, cut=mesh)
        self._judge = None if judge is None else Scorer(protocol, *judge, mesh)

    def work(self, job: Job) -> int:
        """Tokens of one job."""
        return self._writes.samples * len(author(job))

    def run(self, jobs: list[Job], done: set[int]) -> Iterator[tuple[int, list[Scored]]]:
        """Does those that are not done; tokens since the last, and jobs that are finished.

        Groups are the same whatever is done, and so is their text, to the last bit.
        """
        samples = self._writes.samples
        new = len(author(jobs[0]))
        longest = max(len(prompt(job)) for job in jobs)
        most = max(1, self._generator.side_by_side(longest, new) // samples)
        together = -(-len(jobs) // -(-len(jobs) // most))
        for at in range(0, len(jobs), together):
            group = jobs[at : at + together]
            left = [job for job in group if job.number not in done]
            if not left:
                continue
            # as many rows as ever: another number of rows would be compiled anew
            filled = [*group, *[group[-1]] * (together - len(group))]
            prompts = [prompt(job) for job in filled for _ in range(samples)]
            texts: list[list[int]] = [[] for _ in prompts]
            seed, guard = self._writes.seed + at * samples, self._writes.guard
            shown = 0
            if guard is None:
                for parts in self._generator.stream(prompts, new, seed):
                    for text, part in zip(texts, parts, strict=True):
                        text += part.tokens.tolist()
                    shown += len(parts[0].tokens)
                    yield len(left) * samples * len(parts[0].tokens), []
            else:
                written = self._generator.write(prompts, new, seed, guard)
                texts = [text.tokens.tolist() for text in written]
            yield (
                len(left) * samples * (new - shown),
                [
                    {
                        "job": job.number,
                        "document": job.document,
                        "written": texts[i * samples : (i + 1) * samples],
                    }
                    for i, job in enumerate(group)
                    if job in left
                ],
            )

    def result(self, texts: Sequence[Text], jobs: list[Job], found: list[Scored]) -> Evaluated:
        """The protocol's points, and its author's, once all jobs have been done."""
        found = sorted(found, key=lambda one: one["job"])
        written = [[np.array(ids, np.int32) for ids in one["written"]] for one in found]
        authors = [[author(job)] for job in jobs]
        decode = self._tokenizer.decode

        def points(samples: Samples) -> list[ContextScore]:
            judged = self._judged(jobs, samples)
            return [self._point(c, texts, jobs, samples, judged) for c in self._protocol.contexts]

        def said(ids: Ids) -> str:
            return decode(ids).decode(errors="replace")

        shown = WrittenText(
            prompt=said(prompt(jobs[0])), author=said(authors[0][0]), written=said(written[0][0])
        )
        return Evaluated(points(written), points(authors), shown)

    def _point(
        self,
        length: int,
        texts: Sequence[Text],
        jobs: list[Job],
        samples: Samples,
        judged: list[list[Nats]],
    ) -> ContextScore:
        cut = [[ids[:length] for ids in of_one] for of_one in samples]
        counted = self._protocol.counted(cut, self._tokenizer.decode)
        sizes = self._tokenizer.byte_lengths
        documents = [
            {
                "name": text.name,
                "spans": len(of_one),
                "tokens": sum(map(len, of_one)),
                "bytes": int(sum(sizes[ids].sum() for ids in of_one)),
                "prompts": 1,
                "judged": float(sum(nats[:length].sum() for nats in by_judge)),
                **values,
            }
            for text, of_one, values, by_judge in zip(
                texts, cut, counted.by_prompt, judged, strict=True
            )
        ]
        reach = max(len(prompt(job)) for job in jobs) + length - 1
        return context_score(length, documents, reach, self._protocol.measures, counted.of_all)

    def _judged(self, jobs: list[Job], samples: Samples) -> list[list[Nats]]:
        """Of each text the judge's nats of each token; nothing where nobody judges."""
        if self._judge is None:
            return [[] for _ in jobs]
        asked = []
        for job, of_one in zip(jobs, samples, strict=True):
            before = prompt(job)
            for ids in of_one:
                score = Score(len(ids), len(before), len(before) + len(ids))
                excerpt = Excerpt(np.concatenate([before, ids]), (score,))
                asked.append(Job(len(asked), job.document, excerpt))
        nats: dict[int, Nats] = {}
        for job, scores in self._judge.score(asked):
            (score,) = job.excerpt.scores
            nats[job.number] = scores["nll"][score.first : score.last].astype(np.float64)
        found = iter(range(len(asked)))
        return [[nats[next(found)] for _ in of_one] for of_one in samples]


def prompt(job: Job) -> Ids:
    """What is written on from: BOS and what stands before the excerpt's first score."""
    return job.excerpt.tokens[: job.excerpt.scores[0].first]


def author(job: Job) -> Ids:
    """What the author wrote there."""
    return job.excerpt.tokens[job.excerpt.scores[0].first :]
