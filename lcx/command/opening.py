"""What a command was asked, and all that can be known before long work starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax

from lcx import cache
from lcx.checking import check_own
from lcx.command.pages import check_together
from lcx.command.session import Session
from lcx.experiment import choose, with_vocabulary
from lcx.huggingface.state_dict import holds_model
from lcx.parallel.preemption import Preemption
from lcx.parallel.processes import is_primary, join
from lcx.parallel.xla import keep_compiled
from lcx.progress import plain_console
from lcx.training.kept import open_experiments
from lcx.validation import validate
from lcx.variants import check_links, check_seeds, check_teacher


class Asked(NamedTuple):
    """What a command was asked."""

    path: Path
    """An experiment file; a folder of runs, whose experiments are taken as they are there; or a
    published model's, which is evaluated as it is."""
    out: Path | None
    only: str | None
    assignments: tuple[str, ...]
    seeds: int | None
    """Runs of every variant; None: as the file says."""
    reuse: bool


@contextmanager
def open_session(asked: Asked, one_page: bool = True) -> Iterator[Session]:
    """Load, override, and check everything that can be known before long work starts.

    one_page: the chosen variants are evaluated, and their results have to stand on one page.
    While the session is open, a signal to end waits for a good moment. Of several processes the
    first alone says something.
    """
    path, out, only, assignments, seeds, reuse = asked
    join()
    keep_compiled(cache.folder() / "xla")
    console = plain_console(quiet=not is_primary())
    loaded = open_experiments(path)
    experiments, chosen = choose(loaded.experiments, only, assignments)
    if seeds is not None:
        if seeds < 1:
            raise ValueError(f"--seeds must be at least 1, not {seeds}")
        experiments = {name: replace(e, seeds=seeds) for name, e in experiments.items()}
    check_links(experiments)
    if out is None:
        runs = path.is_dir() and not holds_model(path)
        out = path if runs else Path("runs") / loaded.path.stem
    listens = Preemption(lambda message: console.print(message, style="yellow"))
    changes = {name: list(said) for name, said in loaded.changes.items()}
    for name in chosen:
        changes[name] = [*changes.get(name, ()), *assignments]
    session = Session(loaded, experiments, chosen, out, console, listens, changes, reuse)
    check_seeds(session.order, experiments)
    session.check_folders()
    for name in session.order:
        experiment = experiments[name]
        if experiment.data not in session.corpora:
            session.corpora[experiment.data] = experiment.data.load()
        corpus = session.corpora[experiment.data]
        experiments[name] = with_vocabulary(experiment, corpus)
        validate(name, experiments[name], experiments, corpus)
        check_teacher(name, experiments, session.corpora)
    notes = (note for corpus in session.corpora.values() for note in corpus.notes)
    for note in dict.fromkeys(notes):  # other data may come from the same source
        console.print(note, style="yellow", soft_wrap=True)
    if one_page:
        check_together({n: (experiments[n], session.corpus(n)) for n in chosen})
    session.check_folders()
    check_own({name: experiments[name] for name in session.order}, console)
    if is_primary():
        check_writable(out)
    with session.preemption:
        yield session


def check_writable(out: Path) -> None:
    """Raise ValueError where no run can be written below a folder."""
    at = out
    while not at.exists() and at != at.parent:
        at = at.parent
    if not at.is_dir():
        raise ValueError(f"--out {out}: {at} is a file, not a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".lcx-{jax.process_index()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"--out {out}: cannot be written ({error.strerror}); give another"
        ) from error
