"""Distillation: the equation; teachers that are trained, tuned and published; what is refused."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcx.cost import training_flops
from lcx.data import TokenizerFile, spells_as
from lcx.data.byte_level import ByteTokenizer
from lcx.logits import over_logits
from lcx.losses import CrossEntropy, Distillation, Teacher
from lcx.model import LM, count_parameters
from lcx.parallel.mesh import Mesh
from lcx.planning.compiled import compile_step, device_bytes
from lcx.positions import Learned
from lcx.training.loop import train
from lcx.training.runs import Run
from lcx.types import Policy
from lcx.variants import check_links, check_seeds, check_teacher, teacher_model, with_needed
from tests.marks import rest
from tests.test_cli import lcx, metrics
from tests.test_losses import (
    LENGTH,
    MODEL,
    TEACHER,
    VOCAB,
    WIDTH,
    packed,
    same_step,
    step,
    taught_by,
)
from tests.tiny import tiny

LOSSES = [
    Distillation("teacher"),
    rest(Distillation("teacher", temperature=1.0, weight=1.0)),
    rest(Distillation("teacher", temperature=5.0, weight=0.2)),
]


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def equation(loss: Distillation, batch, logits: np.ndarray, taught: np.ndarray):
    """What is minimised, and its gradient by the logits, by hand; the divergence alone."""
    t, w, counts = loss.temperature, loss.weight, np.asarray(batch.scored)
    onehot = np.eye(logits.shape[-1])[np.where(counts, np.asarray(batch.targets), 0)]
    p, q, soft = softmax(taught / t), softmax(logits), softmax(logits / t)
    nll = -(onehot * np.log(q)).sum(axis=-1)
    divergence = (p * np.log(p / soft)).sum(axis=-1)
    by_logits = (1 - w) * (q - onehot) + w * t * (soft - p)
    mean = counts / counts.sum()
    minimised = (1 - w) * nll + w * t**2 * divergence
    return (minimised * mean).sum(), by_logits * mean[..., None], (divergence * mean).sum()


@pytest.mark.parametrize("policy", [Policy(), Policy(compute="bfloat16")], ids=["fp32", "bf16"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_values_and_gradients_are_those_of_the_equation(loss, policy, monkeypatch):
    monkeypatch.setattr("lcx.logits.LOGITS", 2 * VOCAB * 5)  # in pieces, of which the last overlaps
    batch, model = packed(), replace(MODEL, policy=policy)
    teacher = taught_by(replace(TEACHER, policy=policy))
    x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH), policy.compute)
    head = 2 * jax.random.normal(jax.random.key(2), (WIDTH, VOCAB), policy.compute)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def ours(x, head):
        params = nnx.Dict(head=nnx.Dict(kernel=nnx.Param(head)))
        over = teacher.beside(partial(over_logits, model, params), batch)
        sums = loss(x, batch, over)
        divisor = loss.divisor(batch)
        return sums.minimised / divisor, sums.reports["divergence"] / divisor

    (value, divergence), gradients = ours(x, head)
    read = jax.jit(teacher.model.hidden)(teacher.params, batch).x
    x, head, read, its_head = (
        np.asarray(a, np.float64)
        for a in (x, head, read, teacher.params.embed.embedding[...].T.astype(policy.compute))
    )
    expected, by_logits, its_divergence = equation(loss, batch, x @ head, read @ its_head)
    assert its_divergence > 0.1
    np.testing.assert_allclose(value, expected, rtol=RTOL)
    np.testing.assert_allclose(divergence, its_divergence, rtol=RTOL)
    rtol = RTOL if policy.compute == "float32" else 2**-7
    wanted = by_logits @ head.T, np.einsum("btd,btv->dv", x, by_logits)
    for got, each in zip(gradients, wanted, strict=True):
        got = np.asarray(got, np.float64)
        np.testing.assert_allclose(got, each, rtol=0, atol=rtol * abs(each).max())


RTOL = 2e-6
"""Measured: 1.6e-7 of values, 4.3e-7 of the largest of each gradient."""


def test_without_weight_it_is_cross_entropy():
    """Measured: to the bit."""
    same_step(step_alone(Distillation("teacher", weight=0.0)), step(CrossEntropy()))


def step_alone(loss, **cut):
    """A step without what it reports of the teacher."""
    state, metrics = step(loss, **cut)
    metrics["reports"].pop("divergence")
    return state, metrics


def test_a_model_that_is_its_own_teacher_learns_nothing():
    """The divergence is 0, and so is its gradient, but for the rounding of logits."""
    loss, batch, params = Distillation("itself", weight=1.0), packed(), taught_by(MODEL).params

    @jax.jit
    @partial(jax.value_and_grad, argnums=1)
    def ours(teacher, params):
        over = partial(over_logits, MODEL, params)
        x = MODEL.hidden(params, batch).x
        return loss(x, batch, teacher.beside(over, batch)).minimised / loss.divisor(batch)

    other_params = jax.tree.map(lambda a: a / 2, params)
    own, by_own = ours(Teacher(MODEL, params), params)
    other, by_other = ours(Teacher(MODEL, other_params), params)
    largest = [max(abs(g).max() for g in jax.tree.leaves(tree)) for tree in (by_own, by_other)]
    # measured: 0 and 1.2e-7
    assert abs(own) < 1e-6 * other
    assert largest[0] < 1e-6 * largest[1]


def test_nothing_is_random_in_a_teacher():
    """Positions and documents are the student's; noise is not."""
    batch = packed()

    def taught(model: LM, **given) -> np.ndarray:
        teacher, read_both = taught_by(model), batch._replace(**given)

        @jax.jit
        def logits() -> jax.Array:
            over = teacher.beside(lambda f, x, read: f(x, read), read_both)
            return over(lambda _, logits: logits, jnp.zeros((2, LENGTH, WIDTH)))

        return np.asarray(logits())

    keys = jax.random.split(jax.random.key(0), batch.tokens.shape)
    plain = taught(TEACHER, keys=keys)
    np.testing.assert_array_equal(plain, taught(replace(TEACHER, embed_noise=5.0), keys=keys))
    for given in ({"segments": None}, {"positions": 2 * batch.positions}):
        assert abs(plain - taught(TEACHER, **given)).max() > 1e-2


@pytest.mark.parametrize(
    "mesh",
    [rest(Mesh(data=2, model=2), id="data-model"), rest(Mesh(fsdp=2, seq=2), id="fsdp-seq")],
)
def test_a_teacher_lies_on_the_mesh(mesh):
    loss = Distillation("teacher", weight=0.9)
    same_step(step(loss, mesh=mesh, accumulate=2), step(loss))


LESSONS = """
'''Does a short-context teacher help?'''

from dataclasses import replace
from lcx.adapters import LoRA
from lcx.losses import Distillation
from lcx.mixers import RetNet
from tests import tiny

def experiments():
    teacher = tiny.experiments()["softmax"]
    settings = replace(
        teacher.train, length=96, batch=2, steps=6, checkpoint_every=2, evaluate_every=3,
        loss=Distillation("teacher", weight=0.9),
    )
    student = replace(teacher, model=tiny.model(RetNet(heads=2)), train=settings)
    tuned = replace(
        teacher, init_from="teacher", tune=LoRA(rank=2), train=replace(teacher.train, steps=1)
    )
    again = replace(settings, steps=2, loss=Distillation("tuned"))
    return {
        "student": student,
        "teacher": teacher,
        "tuned": tuned,
        "by_tuned": replace(student, train=again),
    }
"""


@pytest.fixture(scope="module")
def lessons(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("file") / "lessons.py"
    path.write_text(LESSONS)
    return path


@pytest.fixture(autouse=True)
def source(texts, monkeypatch):
    monkeypatch.setenv("TINY_TEXTS", f"{texts}/*.txt")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def out(lessons, texts, tmp_path_factory) -> Path:
    """The student, and its teacher before it."""
    folder = tmp_path_factory.mktemp("out") / "lessons"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_TEXTS", f"{texts}/*.txt")
        assert lcx("train", lessons, "--out", folder, "--only", "student") == 0
    return folder


def test_a_student_nears_its_teacher(out):
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["student", "teacher"]
    rows, taught = metrics(out / "student"), metrics(out / "teacher")
    assert "reports" not in taught[0]
    divergences = [row["reports"]["divergence"][0] for row in rows]
    assert 0 < divergences[-1] < divergences[0]
    assert all(abs(row["loss"] - math.log(257)) < 0.5 for row in rows)  # plain nats
    assert abs(rows[-1]["validation_loss"] - rows[-1]["loss"]) < 0.2
    assert Run(out / "student").origin.taught_by is not None
    assert Run(out / "teacher").origin.taught_by is None


def test_a_student_that_is_ended_goes_on_with_the_same_bits(lessons, out, tmp_path):
    again = tmp_path / "out"
    shutil.copytree(out, again)
    run = Run(again / "student")
    shutil.rmtree(run.checkpoints / "6")
    run.finish("not finished")
    assert lcx("train", lessons, "--out", again, "--only", "student") == 0
    assert run.origin.weights == Run(out / "student").origin.weights
    losses = [[row["loss"] for row in metrics(o / "student")] for o in (out, again)]
    assert losses[0] == losses[1]


def test_another_teacher_makes_another_run(lessons, out, tmp_path, capsys):
    again = tmp_path / "out"
    shutil.copytree(out, again)
    before = {p: p.read_bytes() for p in (again / "student").rglob("*.json")}
    Run(again / "teacher").finish("another")
    command = ("train", lessons, "--out", again, "--only", "student")
    assert lcx(*command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "its teacher has been trained anew, or has changed, since" in said
    assert before == {p: p.read_bytes() for p in (again / "student").rglob("*.json")}


@pytest.mark.rest
@pytest.mark.parametrize("mesh", ["Mesh(data=2, model=2)", "Mesh(fsdp=2, seq=2)"])
def test_a_student_on_a_mesh_learns_from_a_teacher_trained_without(mesh, lessons, out, tmp_path):
    again = tmp_path / "out"
    shutil.copytree(out / "teacher", again / "teacher")
    asked = ("--only", "student", "--set", f"mesh={mesh}")
    assert lcx("train", lessons, "--out", again, *asked) == 0
    for a, b in zip(metrics(again / "student"), metrics(out / "student"), strict=True):
        # measured: 1.8e-7, and 2.0e-8
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["reports"]["divergence"] == pytest.approx(b["reports"]["divergence"], abs=1e-7)


@pytest.mark.rest
def test_a_published_teacher_teaches_the_same(lessons, out, tmp_path):
    """The same weights, written for transformers and read back."""
    folder = tmp_path / "published"
    assert lcx("export", out / "teacher", "--to", folder) == 0
    change = f"train.loss.teacher=Pretrained({str(folder)!r})"
    asked = ("--only", "student", "--set", change)
    assert lcx("train", lessons, "--out", tmp_path / "out", *asked) == 0
    assert not (tmp_path / "out" / "teacher").exists()
    for a, b in zip(metrics(tmp_path / "out" / "student"), metrics(out / "student"), strict=True):
        assert (a["loss"], a["reports"]) == (b["loss"], b["reports"])


@pytest.mark.rest
def test_a_tuned_teacher_is_asked_with_what_it_was_tuned_to(lessons, out, tmp_path):
    again = tmp_path / "out"
    shutil.copytree(out, again)
    assert lcx("train", lessons, "--out", again, "--only", "by_tuned") == 0
    assert (again / "tuned").is_dir()
    assert metrics(again / "by_tuned")[0]["reports"]["divergence"][0] > 0


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.loss.teacher=teachr", "student.train.loss.teacher: no variant 'teachr'; did you"),
        ("train.loss.teacher=student", "go in a circle: student -> student"),
        ("train.loss.temperature=0", "temperature must be positive, not 0"),
        ("train.loss.weight=1.5", "weight must be in [0, 1], not 1.5"),
        ("model.vocab=300", "teacher has 257 token ids, and student has 300"),
        ("train.loss.teacher=Pretrained('nowhere')", "nowhere"),
        ("train.loss=Distillation()", "Distillation needs teacher"),
    ],
)
def test_bad_input_is_refused_before_training(lessons, assignment, said, tmp_path, capsys):
    asked = ("--only", "student", "--set", assignment)
    assert lcx("compare", lessons, "--out", tmp_path / "out", *asked) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.fixture
def variants(texts):
    teacher = replace(tiny(f"{texts}/*.txt"), seeds=2)
    teacher = replace(teacher, model=replace(teacher.model, vocab=257))
    taught = replace(teacher.train, loss=Distillation("teacher"))
    return {"student": replace(teacher, train=taught), "teacher": teacher}


def test_a_teacher_comes_before_its_student(variants):
    later = replace(variants["teacher"], init_from="student")
    given = variants | {"later": later}
    check_links(given)
    assert with_needed(["later"], given) == ["teacher", "student", "later"]
    idle = replace(given["student"], train=replace(given["student"].train, steps=0))
    assert with_needed(["idle"], {"idle": idle}) == ["idle"]  # what does not train needs none
    given["teacher"] = replace(given["teacher"], init_from="later")
    with pytest.raises(ValueError, match="circle: student -> teacher -> later -> student"):
        check_links(given)


def test_runs_learn_from_as_many_or_from_one(variants):
    check_seeds(variants, variants)
    check_seeds(variants, variants | {"teacher": replace(variants["teacher"], seeds=1)})
    more = variants | {"student": replace(variants["student"], seeds=3)}
    with pytest.raises(ValueError, match="student: seeds: is 3, and teacher, its teacher, has 2"):
        check_seeds(more, more)


def test_teachers_that_do_not_fit_are_refused(variants, tmp_path):
    corpora = {variants["teacher"].data: variants["teacher"].data.load()}
    check_teacher("student", variants, corpora)

    def refused(said: str, **changes):
        teacher = replace(variants["teacher"], **changes)
        given = variants | {"teacher": teacher}
        with pytest.raises(ValueError, match=f"student: train.loss.teacher: teacher.*{said}"):
            check_teacher("student", given, corpora | {teacher.data: teacher.data.load()})

    model, tokenizer = variants["teacher"].model, json.loads(ByteTokenizer().json)
    refused(
        "has vectors for texts of 32 tokens.* of 48", model=replace(model, positions=Learned(32))
    )
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer))
    other = replace(variants["teacher"].data, tokenizer=TokenizerFile(str(path)))
    refused("has another tokenizer", data=other)
    assert not spells_as(ByteTokenizer(), path)
    path.write_text(ByteTokenizer().json)
    assert spells_as(ByteTokenizer(), path)


def test_costs_and_plans_count_a_teacher(variants):
    student = variants["student"]
    model = teacher_model("student", variants)
    own = training_flops(student.model, 48)
    assert training_flops(student.model, 48, teacher=model) == pytest.approx(own + own / 3)
    *_, fixed = compile_step(student, model)
    assert device_bytes(fixed) == 4 * count_parameters(model)


def test_a_training_without_its_teacher_is_refused(variants, tmp_path):
    student, run = variants["student"], Run(tmp_path / "student")
    with pytest.raises(ValueError, match=r"train.loss: Distillation needs its teacher"):
        train(student, run, student.data.load())
