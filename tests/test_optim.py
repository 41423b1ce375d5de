"""Optimizers: against formulas in float64, what decays, schedules, meshes, resuming, errors."""

import json
import shutil
from dataclasses import dataclass, replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from lcx.block import Block
from lcx.dense import Kind, vector
from lcx.experiment import types
from lcx.layers import LayerNorm
from lcx.mixers import RGLRU, RWKV6, RWKV7
from lcx.model import LM, parameters
from lcx.optim import OPTIMIZERS, AdamW, Lion, Muon, Optimizer, in_fp32
from lcx.parallel.mesh import Mesh, is_variable, make_mesh, shardings
from lcx.positions import Learned
from lcx.spec import SpecError, decode, encode, override
from lcx.training.loop import fresh_state, train
from lcx.training.origin import Origin
from lcx.training.runs import Run
from lcx.types import Dims
from lcx.validation import validate
from tests.contracts.cases import SUBLAYERS, name
from tests.tiny import tiny

FLAT = {"warmup": 0, "schedule": "constant", "clip": 1e9}


# ------------------------------------------------------------------------------ what a parameter is


@pytest.mark.parametrize("sublayer", SUBLAYERS, ids=name)
def test_every_parameter_of_a_half_says_what_it_is(sublayer):
    def init(layer):
        with nnx.use_eager_sharding(False):
            return sublayer.init(Dims(32, layers=3, layer=layer), nnx.Rngs(0))

    for path, leaf in declared(jax.eval_shape(init, 1)).items():
        kind = leaf.get_metadata().get("kind")
        assert kind in get_args(Kind), f"{path} is {kind}"
        assert (kind == "matrix") >= path.endswith("kernel"), path
        if kind == "matrix":
            assert leaf.ndim >= 2, path


def declared(tree) -> dict[str, nnx.Variable]:
    """By path; counts and other arrays that belong to no parameter are left out."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_variable)
    found = [(path, leaf) for path, leaf in found if is_variable(leaf)]
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in found}


def test_embeddings_positions_and_the_head_are_tables():
    whole = LM(
        pattern=(Block(norm=LayerNorm()),),
        tied=False,
        norm=LayerNorm(),
        embed_norm=LayerNorm(),
        positions=Learned(8),
    )
    kinds = {path: leaf.get_metadata()["kind"] for path, leaf in parameters(whole).items()}
    tables = {path for path, kind in kinds.items() if kind == "table"}
    assert tables == {"embed.embedding", "positions.table", "head.kernel"}
    norms = {path for path, kind in kinds.items() if kind == "vector"}
    assert norms == {path for path in kinds if "norm" in path}


def step_of(optimizer, params, gradients):
    """What one step adds to the parameters."""
    transform = optimizer.transform(100)

    @jax.jit
    def step(params, gradients):
        return transform.update(gradients, transform.init(params), params)[0]

    return declared(step(params, gradients))


def test_matrices_and_tables_decay_and_nothing_else():
    model = LM(
        width=32,
        pattern=(Block(RGLRU(heads=2)), Block(RWKV6(heads=2)), Block(RWKV7(heads=2))),
        repeats=1,
    )
    ones = jax.tree.map(lambda a: jnp.ones(a.shape), jax.eval_shape(model.init, jax.random.key(0)))
    still = jax.tree.map(jnp.zeros_like, ones)
    after = step_of(AdamW(peak=0.5, **FLAT), ones, still)
    changed = {path for path, v in after.items() if v[...].any()}
    kinds = {path: v.get_metadata()["kind"] for path, v in declared(ones).items()}
    assert changed == {path for path, kind in kinds.items() if kind != "vector"}
    assert {f"blocks.0.mixer.{gate}.weight" for gate in ("recurrence_gate", "input_gate")} < changed
    assert "blocks.1.mixer.mix_out" in changed
    # a gradient of one, and Adam's first step is one
    moved = step_of(AdamW(peak=0.5, **FLAT), ones, ones)
    assert moved["blocks.2.mixer.decay"][...] == pytest.approx(-1.0)
    assert moved["blocks.2.mixer.rate"][...] == pytest.approx(-0.5)


def test_a_parameter_that_does_not_say_what_it_is_is_refused():
    params = nnx.Dict(known=vector(jnp.ones(3)), forgotten=nnx.Param(jnp.ones((3, 3))))
    with pytest.raises(ValueError, match="the parameter forgotten does not say what it is"):
        AdamW().transform(10).init(params)


# ------------------------------------------------------------------------------ formulas


def newton_schulz(x):
    """Jordan et al. 2024, in float64."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def muon(values, gradients, rate, decay, momentum=0.95):
    """Moonlight, equations 1 and 4, with the momentum of its code, which is Nesterov's."""
    buffer = np.zeros_like(values)
    for gradient in gradients:
        buffer = momentum * buffer + gradient
        moved = np.stack([newton_schulz(m) for m in gradient + momentum * buffer])
        moved *= 0.2 * np.sqrt(max(values.shape[1:]))
        values = values - rate * (moved + decay * values)
    return values


def adamw(values, gradients, rate, decay, b1=0.9, b2=0.95, eps=1e-8):
    """Loshchilov and Hutter 2019, algorithm 2."""
    first = second = np.zeros_like(values)
    for t, gradient in enumerate(gradients, start=1):
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient**2
        moved = first / (1 - b1**t) / (np.sqrt(second / (1 - b2**t)) + eps)
        values = values - rate * (moved + decay * values)
    return values


def lion(values, gradients, rate, decay, b1=0.9, b2=0.99):
    """Chen et al. 2023, algorithm 2."""
    momentum = np.zeros_like(values)
    for gradient in gradients:
        moved = np.sign(b1 * momentum + (1 - b1) * gradient)
        momentum = b2 * momentum + (1 - b2) * gradient
        values = values - rate * (moved + decay * values)
    return values


KINDS = dict.fromkeys(("square", "wide", "tall"), "matrix") | {"table": "table", "vector": "vector"}
SHAPES = {
    "square": (2, 6, 7),
    "wide": (2, 6, 10),
    "tall": (2, 10, 6),
    "table": (7, 5),
    "vector": (5,),
}


@pytest.mark.parametrize(
    ("optimizer", "matrix", "other"),
    [
        (Muon(peak=0.1, weight_decay=0.3, **FLAT), muon, adamw),
        (AdamW(peak=0.1, weight_decay=0.3, **FLAT), adamw, adamw),
        (Lion(peak=0.1, weight_decay=0.3, **FLAT), lion, lion),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_three_steps_are_those_of_the_formulas(optimizer, matrix, other):
    rng = np.random.default_rng(0)
    start = {n: rng.normal(size=shape) for n, shape in SHAPES.items()}
    gradients = [{n: rng.normal(size=s) for n, s in SHAPES.items()} for _ in range(3)]

    def tree(values):
        arrays = {n: jnp.asarray(v, jnp.float32) for n, v in values.items()}
        return nnx.Dict({n: nnx.Param(a, kind=KINDS[n]) for n, a in arrays.items()})

    transform, params = optimizer.transform(100), tree(start)
    state, update = transform.init(params), jax.jit(transform.update)
    for gradient in gradients:
        updates, state = update(tree(gradient), state, params)
        params = optax.apply_updates(params, updates)
    for n, values in start.items():
        formula = matrix if KINDS[n] == "matrix" else other
        decay = 0.0 if n == "vector" else 0.3
        expected = formula(values, [g[n] for g in gradients], 0.1, decay)
        np.testing.assert_allclose(params[n][...], expected, atol=2e-5)  # measured: 2e-6


@dataclass(frozen=True)
class Plain:
    """A user's own, which says nothing of dtypes."""

    def learning_rate(self, steps):
        return optax.constant_schedule(1e-3)

    def transform(self, steps):
        return optax.adam(self.learning_rate(steps), b2=0.999)


SLOW = (AdamW(peak=1e-3, b2=0.999, **FLAT), Muon(b2=0.999, **FLAT), Lion(b2=0.999, **FLAT), Plain())


@pytest.mark.parametrize("optimizer", SLOW, ids=lambda optimizer: type(optimizer).__name__)
def test_a_constant_gradient_in_bf16_takes_the_steps_of_fp32(optimizer):
    """Moments in bf16 stop growing: after 1,000 steps b2 = 0.999 made one 1.65 times too long."""

    def of(dtype):
        shapes = {"matrix": (4, 6), "table": (5, 3), "vector": (3,)}
        gradient = nnx.Dict(
            {n: nnx.Param(jnp.full(s, 0.375, dtype), kind=n) for n, s in shapes.items()}
        )
        transform = in_fp32(optimizer.transform(1000))

        def step(_, carry):
            return transform.update(gradient, carry[1], gradient)

        first = transform.update(gradient, transform.init(gradient), gradient)
        return jax.jit(lambda: jax.lax.fori_loop(1, 1000, step, first))()

    (stored, state), (exact, _) = of(jnp.bfloat16), of(jnp.float32)
    for a, b in zip(jax.tree.leaves(stored), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jnp.dtype("bfloat16") not in {a.dtype for a in jax.tree.leaves(state)}


def test_schedules_rise_stay_and_fall():
    cosine = AdamW(peak=1.0, warmup=10, final=0.1).learning_rate(100)
    assert cosine(9) == pytest.approx(1.0, abs=0.1)
    assert cosine(100) == pytest.approx(0.1, abs=0.01)
    wsd = Muon(peak=1.0, warmup=10, final=0.0, schedule="wsd").learning_rate(110)
    assert wsd(50) == wsd(85) == 1.0
    assert wsd(100) == pytest.approx(0.5)
    assert wsd(110) == pytest.approx(0.0)


# ------------------------------------------------------------------------------ in training


@pytest.fixture(scope="module")
def experiment(texts):
    small = tiny(f"{texts}/*.txt")
    settings = replace(small.train, steps=4, checkpoint_every=2, evaluate_every=3)
    return replace(small, train=replace(settings, optimizer=Muon(warmup=1)))


def trained(experiment, folder) -> Run:
    run = Run(folder)
    run.claim(experiment, Origin(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lcx.training.loop.VALIDATED", 1000)
        train(experiment, run, experiment.data.load(), None, Console(quiet=True))
    return run


def untimed(run: Run) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.read_metrics()]


@pytest.fixture(scope="module")
def muon_run(experiment, tmp_path_factory) -> Run:
    return trained(experiment, tmp_path_factory.mktemp("muon") / "alone")


@pytest.mark.slow
def test_muon_resumes_with_the_same_bits(experiment, muon_run, tmp_path):
    shutil.copytree(muon_run.folder, tmp_path / "part")
    part = Run(tmp_path / "part")
    shutil.rmtree(part.checkpoints / "4")
    trained(experiment, part.folder)
    assert untimed(part) == untimed(muon_run)


@pytest.mark.slow
def test_lion_resumes_with_the_same_bits(experiment, tmp_path):
    settings = replace(experiment.train, optimizer=Lion(warmup=1), evaluate_every=None)
    asked = replace(experiment, train=settings)
    whole = trained(asked, tmp_path / "run")
    expected = untimed(whole)
    shutil.rmtree(whole.checkpoints / "4")
    assert untimed(trained(asked, whole.folder)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [Mesh(data=2, fsdp=2, model=2)], ids=str)
def test_muon_on_a_mesh_is_that_of_one_device(experiment, muon_run, mesh, tmp_path):
    """Newton-Schulz of matrices that lie in pieces; the loss on the validation split, too."""
    there = trained(replace(experiment, mesh=mesh), tmp_path / "meshed")
    for here, alone in zip(there.read_metrics(), muon_run.read_metrics(), strict=True):
        assert here["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert ("validation_loss" in here) == ("validation_loss" in alone) == (here["step"] > 2)
        if "validation_loss" in here:
            assert here["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-4)


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=lambda c: c.__name__)
def test_moments_are_cut_as_their_parameters(experiment, cls):
    transform = cls().transform(10)
    state = jax.eval_shape(lambda key: fresh_state(experiment, transform, key), jax.random.key(0))
    where = shardings(state, make_mesh(Mesh(fsdp=2, model=2)))
    of_params = {path: v.get_value().spec for path, v in declared(where.params).items()}
    assert any(any(spec) for spec in of_params.values())
    for path, v in declared(where.optimizer).items():
        for sharding in jax.tree.leaves(v):  # a partition has empty places
            param = max((p for p in of_params if path.endswith(p)), key=len)
            assert sharding.spec == of_params[param], path


# ------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=lambda c: c.__name__)
def test_optimizers_are_written_read_and_overridden(experiment, cls):
    assert isinstance(cls(), Optimizer)
    asked = replace(experiment, train=replace(experiment.train, optimizer=cls(peak=0.25)))
    assert decode(json.loads(json.dumps(encode(asked))), types(asked)) == asked
    changed = override(asked, "train.optimizer.peak=1e-3", types(asked))
    assert changed.train.optimizer == cls(peak=1e-3)
    swapped = override(experiment, f"train.optimizer={cls.__name__}(clip=2)", types(experiment))
    assert swapped.train.optimizer == cls(clip=2.0)
    for bad in ("peak=0", "peak=-1", "clip=0", "b1=1", "b2=-0.1", "weight_decay=-1", "final=2"):
        with pytest.raises(
            SpecError, match=f"train.optimizer: {cls.__name__}: .*{bad.split('=')[0]}"
        ):
            override(asked, f"train.optimizer.{bad}", types(asked))


def test_a_wrong_optimizer_is_refused(experiment):
    with pytest.raises(SpecError, match=r"optimizer: unknown type 'Moun'; did you mean 'Muon'"):
        override(experiment, "train.optimizer=Moun()", types(experiment))
    with pytest.raises(SpecError, match=r"train.optimizer: expected Optimizer, got LM"):
        override(experiment, "train.optimizer=LM()", types(experiment))
    with pytest.raises(ValueError, match="Muon: momentum must lie in"):
        Muon(momentum=1.0)
    with pytest.raises(ValueError, match="Muon: rms must be positive"):
        Muon(rms=0.0)


@dataclass(frozen=True)
class Adafactor:
    """Keeps sums over rows and over columns in place of a second moment."""

    def learning_rate(self, steps):
        return optax.constant_schedule(1e-3)

    def transform(self, steps):
        return optax.adafactor(self.learning_rate(steps), min_dim_size_to_factor=8)


def test_an_optimizer_that_cannot_take_a_mesh_is_refused(experiment):
    corpus = experiment.data.load()
    own = replace(experiment, train=replace(experiment.train, optimizer=Adafactor()))
    validate("own", own, {}, corpus)
    validate("own", replace(own, mesh=Mesh(data=2)), {}, corpus)
    with pytest.raises(
        ValueError, match=r"own: train.optimizer: an array of shape .* data and seq"
    ):
        validate("own", replace(own, mesh=Mesh(fsdp=2)), {}, corpus)
    validate("muon", replace(experiment, mesh=Mesh(fsdp=2, model=2)), {}, corpus)
