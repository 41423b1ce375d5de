"""The reference of a loss of pairs: what the first parameters say of every row, computed once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32

from lcx import spec
from lcx.cache import Digest
from lcx.data import PairedTexts
from lcx.experiment import Experiment
from lcx.logits import over_logits
from lcx.parallel.mesh import BATCH, place
from lcx.parallel.processes import barrier, is_primary
from lcx.parallel.seqpar import REPLICATED, SHARDED, sharded
from lcx.progress import counted
from lcx.protocols.measures import token_scores
from lcx.training.fingerprint import fingerprint
from lcx.training.runs import Run
from lcx.types import Batch, Params


def with_reference(
    experiment: Experiment, run: Run, corpus: PairedTexts, params: Params, mesh: jax.sharding.Mesh
) -> PairedTexts:
    """The pairs, whose rows have the log-probabilities of their targets under the parameters.

    They are kept in the run's folder, and found there by the parameters, the model and the texts
    that they are of. To be called while the mesh is set.
    """
    settings = experiment.train
    splits = ["train"] if settings.evaluate_every is None else ["train", "validation"]
    key = Digest(fingerprint(params), spec.describe(experiment.model), corpus.fingerprint)
    key.add(str(settings.length))
    found = {}
    for split in splits:
        path = run.folder / "reference" / f"{split}-{key}.npy"
        there = path.exists()
        barrier(f"the reference of {run.name} is looked for")  # before the first one writes it
        if not there:
            values = _computed(experiment, corpus, split, params, mesh)
            if is_primary():
                _write(path, values)
            barrier(f"the reference of {run.name} is written")
        found[split] = np.load(path, mmap_mode="r")
    return corpus.with_reference(found)


def make_scoring(experiment: Experiment) -> Callable[[Params, Batch], Float[Array, "B T"]]:
    """(parameters, batch) -> the log-probability of each target, 0 where it is not scored. Pure."""
    model, length, shards = experiment.model, experiment.train.length, experiment.mesh.shards

    def of_shard(params: Params, batch: Batch) -> Float[Array, "B t"]:
        lengths = jnp.full(batch.tokens.shape, length, jnp.int32)
        out = model.hidden(params, batch._replace(lengths=lengths), shards=shards)
        targets: Any = batch.targets
        scores = over_logits(model, params, token_scores, out.x, targets)
        return jnp.where(batch.scored, -scores.nll, 0.0)

    scoring = sharded(of_shard, shards, (REPLICATED, SHARDED), SHARDED)
    return model.policy.precise()(scoring)


def _computed(
    experiment: Experiment, corpus: PairedTexts, split: str, params: Params, mesh: jax.sharding.Mesh
) -> Float32[np.ndarray, " inputs"]:
    """Of each token of a split's rows that is no padding, row after row."""
    settings = experiment.train
    rows, at_once = corpus.rows(settings.length, split), settings.rows // 2
    cut = NamedSharding(mesh, BATCH)
    # every process needs all: which of them its rows will be is not known yet
    scoring = jax.jit(make_scoring(experiment), out_shardings=NamedSharding(mesh, PartitionSpec()))
    values, starts = [], range(0, len(rows), at_once)
    for start in counted(starts, len(starts), "reference"):
        indices = range(start, min(start + at_once, len(rows)))
        pairs = [rows[index] for index in indices]
        pairs += pairs[-1:] * (at_once - len(pairs))  # the last batch is filled up
        joined: dict[str, Any] = {n: np.concatenate([p[n] for p in pairs]) for n in pairs[0]}
        batch = Batch(**{name: place(array, cut) for name, array in joined.items()})
        scores = np.asarray(scoring(params, batch), np.float32)[: 2 * len(indices)]
        values.append(scores[joined["segments"][: 2 * len(indices)] > 0])
    return np.concatenate(values)


def _write(path: Path, values: Float32[np.ndarray, " inputs"]) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".unfinished")
    with draft.open("wb") as file:
        np.save(file, values)
    draft.replace(path)
