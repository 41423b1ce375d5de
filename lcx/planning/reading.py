"""What evaluation takes: a protocol's longest texts, read in pieces with a state.

As `lcx.planning.compiled`: laid out by XLA for this process's devices, and nothing is run.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Key

from lcx.adapters.protocol import Tuning
from lcx.adapters.split import begin, frozen, tuned
from lcx.evaluation.reading import Scorer
from lcx.experiment import Experiment
from lcx.model import LM
from lcx.parallel.mesh import make_mesh, shardings
from lcx.parallel.xla import known_options
from lcx.planning.compiled import OPTIONS, as_if_half, device_bytes, laid, peak
from lcx.types import Params


@dataclass(frozen=True)
class Reading:
    """Bytes of one device."""

    length: int
    """Tokens of the longest text."""
    rows: int
    """Texts side by side."""
    parameters: int
    state: int
    """Of all rows, at the end of the longest text."""
    memory: int
    """All together, at the peak: as a piece is read, or its targets are scored."""


def measure_reading(experiment: Experiment) -> Reading:
    """Compile what reads the longest texts of an experiment's protocol.

    Raises ValueError where this process's devices are too few for its mesh.
    """
    model, protocol = as_if_half(experiment.model), experiment.evaluation
    mesh = make_mesh(experiment.mesh)
    abstract = jax.eval_shape(partial(_read, model, experiment.tune), jax.random.key(0))
    params = jax.tree.map(laid, abstract, shardings(abstract, mesh))
    scorer = Scorer(protocol, model, params, experiment.mesh)
    with jax.set_mesh(mesh):
        lowered = scorer.lower(protocol.longest)
        options: Any = known_options(OPTIONS)
        advance, score = (
            one.compile(compiler_options=options) for one in (lowered.advance, lowered.scores)
        )
    parameters, state = device_bytes(params), device_bytes(lowered.state)
    # compiled functions have only the arguments that they use; the others are there all the same
    used = score.memory_analysis().argument_size_in_bytes - device_bytes(lowered.scored)
    return Reading(
        length=protocol.longest,
        rows=lowered.rows,
        parameters=parameters,
        state=state,
        memory=max(peak(advance), peak(score) + parameters - used + state),
    )


def _read(model: LM, tune: Tuning | None, key: Key[Array, ""]) -> Params:
    """The parameters that are read: of a tuned run, with what its method has added."""
    own = model.init(key)
    if tune is None:
        return own
    return tuned(tune, model, begin(tune, model, own, key), frozen(tune, model, own))
