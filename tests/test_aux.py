"""What travels beside the residual stream: layers' reports and penalties, and random keys."""

import shutil
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lcx.block import Block
from lcx.layers import SwiGLU
from lcx.layers.dropout import dropped
from lcx.mixers import LinearAttention
from lcx.model import LM, WRITTEN_OUT
from lcx.parallel.mesh import BATCH, Mesh, make_mesh, shardings
from lcx.training.loop import fresh_state, jit_step, train
from lcx.training.origin import Origin
from lcx.training.restore import restore_params
from lcx.training.runs import Run
from lcx.types import Aux, Batch, Context, Output, joined
from tests.tiny import tiny


@dataclass(frozen=True)
class Reporting(SwiGLU):
    """Reports the size of its output's parts, which it also penalises."""

    def __call__(self, params, x, ctx, state=None):
        out = super().__call__(params, x, ctx, state)
        size = jnp.square(out.x.astype(jnp.float32)).reshape(*out.x.shape[:2], 4, -1).mean(-1)
        load = (size * ctx.real[..., None]).sum((0, 1))
        return out._replace(aux=Aux({"load": load[None]}, 0.1 * load.sum()))


@pytest.fixture(scope="module")
def experiment(texts):
    small = tiny(f"{texts}/*.txt")
    block = Block(LinearAttention(heads=2), Reporting(hidden=16), dropout=0.1)
    model = LM(width=16, pattern=(block,), repeats=2)
    settings = replace(small.train, steps=4, checkpoint_every=2, batch=4)
    return replace(small, model=model, train=settings)


def step(experiment):
    """The state after one step and its metrics, on the experiment's mesh."""
    settings, mesh = experiment.train, make_mesh(experiment.mesh)
    optimizer = settings.optimizer.transform(10)
    rows = next(iter(experiment.data.load().batches(settings.length, settings.batch, 0)))
    batch = Batch(**{name: jnp.asarray(np.asarray(array)) for name, array in rows.items()})
    with jax.set_mesh(mesh):
        fresh = jax.eval_shape(lambda: fresh_state(experiment, optimizer, jax.random.key(0)))
        where = shardings(fresh, mesh)
        state = jax.jit(
            lambda: fresh_state(experiment, optimizer, jax.random.key(0)), out_shardings=where
        )()
        batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, BATCH))
        return jax.device_get(jit_step(experiment, optimizer, where, mesh)(state, batch))


@pytest.fixture(scope="module")
def plain(experiment):
    return step(experiment)


def test_a_report_has_a_row_for_each_layer_that_makes_it(plain):
    _, metrics = plain
    assert metrics["reports"]["load"].shape == (2, 4)
    assert (metrics["reports"]["load"] > 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"accumulate": 4},
        {"remat": "block"},
        {"mesh": Mesh(data=2, fsdp=2)},
        pytest.param({"mesh": Mesh(data=2, seq=2), "accumulate": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_reports_penalties_and_dropout_do_not_depend_on_how_a_batch_is_cut(
    experiment, plain, change
):
    model = replace(experiment.model, remat=change.get("remat", "none"))
    settings = replace(experiment.train, accumulate=change.get("accumulate", 1))
    mesh = change.get("mesh", Mesh())
    state, metrics = step(replace(experiment, model=model, train=settings, mesh=mesh))
    expected_state, expected = plain
    # measured: 4e-7 of metrics, 9e-7 of the largest of each moment
    for got, there in zip(jax.tree.leaves(metrics), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, there, rtol=5e-6)
    moments = zip(
        jax.tree.leaves(state.optimizer), jax.tree.leaves(expected_state.optimizer), strict=True
    )
    for got, there in moments:
        np.testing.assert_allclose(got, there, rtol=0, atol=5e-6 * np.abs(there).max())


def test_a_penalty_is_minimised_and_not_shown(experiment, plain):
    @dataclass(frozen=True)
    class Free(Reporting):
        def __call__(self, params, x, ctx, state=None):
            out = super().__call__(params, x, ctx, state)
            return out._replace(aux=out.aux._replace(penalty=None))

    pattern = (replace(experiment.model.pattern[0], channel=Free(hidden=16)),)
    model = replace(experiment.model, pattern=pattern)
    _, free = step(replace(experiment, model=model))
    assert free["loss"] == plain[1]["loss"]
    assert abs(free["grad_norm"] - plain[1]["grad_norm"]) > 1e-4


def test_a_loop_of_layers_reports_what_layers_one_by_one_do():
    """In training and in pieces of a text, whose reports add up."""
    block = Block(LinearAttention(heads=2), Reporting(hidden=16))
    model = LM(vocab=50, width=16, pattern=(block,), repeats=WRITTEN_OUT + 1)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, 50)
    call = jax.jit(model)
    whole = call(params, Batch(tokens)).aux
    state, pieces = model.init_state(2, 24), []
    for begin, end in ((0, 9), (9, 24)):
        out = call(params, Batch(tokens[:, begin:end]), state)
        state = out.state
        pieces.append(out.aux)
    assert whole.reports["load"].shape == (WRITTEN_OUT + 1, 4)
    summed = jax.tree.map(jnp.add, *pieces)
    for got, expected in zip(jax.tree.leaves(summed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, expected, rtol=5e-6)  # measured: 4e-7


def test_reports_of_two_shapes_need_two_names():
    a, b = (Aux({"load": jnp.zeros((1, n))}) for n in (2, 3))
    with pytest.raises(ValueError, match=r"report 'load' in the shapes \(2,\) and \(3,\)"):
        joined(a, b)


def test_dropout_drops_its_share_of_features_and_keeps_the_mean():
    ctx = Context(jnp.arange(200)[None], keys=jax.random.split(jax.random.key(0), (1, 200)))
    x = jnp.ones((1, 200, 64))
    y = np.asarray(dropped(x, 0.25, ctx))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02  # of 12,800: a standard deviation of 0.004
    other = np.asarray(dropped(x, 0.25, ctx.drawing(1)))
    assert abs(((y == 0) & (other == 0)).mean() - 0.0625) < 0.02
    np.testing.assert_array_equal(dropped(x, 0.25, ctx._replace(keys=None)), x)


@pytest.mark.slow
def test_dropout_is_drawn_anew_each_step_and_resumes_with_the_same_bits(experiment, tmp_path):
    corpus, quiet = experiment.data.load(), Console(quiet=True)

    def trained(name):
        run = Run(tmp_path / name)
        run.claim(experiment, Origin(), {})
        train(experiment, run, corpus, None, quiet)
        return run

    whole, part = trained("whole"), trained("part")
    shutil.rmtree(part.checkpoints / "4")
    train(experiment, part, corpus, None, quiet)
    a, b = (jax.tree.leaves(restore_params(experiment, run)) for run in (whole, part))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    rows = whole.read_metrics()
    assert np.shape(rows[-1]["reports"]["load"]) == (2, 4)


def test_dropout_is_a_share():
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), not 1"):
        Block(dropout=1.0)


def test_an_output_without_a_state_or_reports_is_its_x_alone():
    assert jax.tree.leaves(Output(jnp.ones(3)))[0].shape == (3,)
    assert len(jax.tree.leaves(Output(jnp.ones(3)))) == 1
