"""An evaluation from its first excerpt to its last: resumed, watched, ended when that is asked."""

import time
from pathlib import Path

from rich.console import Console

from lcx.cache import Digest
from lcx.data import Texts
from lcx.evaluation.draft import Draft, Job, Scored
from lcx.evaluation.metrics import Evaluated
from lcx.evaluation.reading import Reading
from lcx.evaluation.writing import Writing
from lcx.experiment import Experiment
from lcx.model import LM
from lcx.parallel.preemption import Preemption
from lcx.progress import plain_console, progress
from lcx.types import Params


def evaluate(
    experiment: Experiment,
    params: Params,
    corpus: Texts,
    name: str,
    console: Console | None = None,
    preemption: Preemption | None = None,
    draft: Path | None = None,
    judge: tuple[LM, Params] | None = None,
) -> tuple[Evaluated, float]:
    """What the experiment's protocol says of these parameters, and the seconds it took.

    draft: a file in which what each excerpt gives is kept as it comes; an evaluation that was
    killed, and is started again with the same parameters, protocol and data, goes on from there.
    judge: the model that the protocol names as its `judge`, and its parameters.

    Raises ValueError where no document is long enough; Preempted where `preemption` says that this
    process has to end.
    """
    began = time.perf_counter()
    protocol, tokenizer = experiment.evaluation, corpus.tokenizer
    texts, bos = corpus.targets(protocol).texts, tokenizer.bos
    excerpts = ((i, w) for i, text in enumerate(texts) for w in protocol.excerpts(text, bos))
    jobs = [Job(number, i, excerpt) for number, (i, excerpt) in enumerate(excerpts)]
    if protocol.writes is None:
        way = Reading(experiment, params, tokenizer)
    else:
        way = Writing(experiment, params, tokenizer, judge)
    with Draft(draft) as kept, progress(console or plain_console()) as bar:
        total = sum(map(way.work, jobs))
        task = bar.add_task(f"{name}, {way.doing}", total=total, note="tokens")
        found: list[Scored] = [*kept.before]
        done = {one["job"] for one in found}
        bar.advance(task, sum(way.work(jobs[number]) for number in done))
        for tokens, finished in way.run(jobs, done):
            for one in finished:
                found.append(one)
                kept.write(one)
            bar.advance(task, tokens)
            if preemption is not None and preemption.reached():
                preemption.end(f"{name}: {len(found)} of {len(jobs)} excerpts are evaluated")
    return way.result(texts, jobs, found), time.perf_counter() - began


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
