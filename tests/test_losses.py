"""Losses against their equations in float64, and however a batch is cut.

Gradients of the equations are complex steps: f(x + ih) = f(x) + ih f'(x), exact for a small h.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from lcx.block import Block
from lcx.experiment import Experiment, Train
from lcx.layers import SwiGLU
from lcx.layers.noise import noisy
from lcx.logits import over_logits
from lcx.losses import (
    LOSSES,
    Contrastive,
    CrossEntropy,
    Distillation,
    OfPairs,
    OfTeacher,
    OfWritten,
    SequenceUnlikelihood,
    Teacher,
    Unlikelihood,
)
from lcx.losses.sequence_unlikelihood import repeats
from lcx.losses.unlikelihood import log_one_minus_p
from lcx.mixers import LinearAttention, SoftmaxAttention
from lcx.model import LM
from lcx.parallel.mesh import BATCH, Mesh, make_mesh, shardings
from lcx.spec import describe
from lcx.training.loop import fresh_state, jit_step, make_step, make_validation
from lcx.types import Batch, Context, Policy
from lcx.validation import validate
from tests.tiny import tiny

VOCAB, WIDTH, LENGTH = 9, 6, 16
BLOCK = Block(LinearAttention(heads=2), SwiGLU(hidden=8))
MODEL = LM(vocab=VOCAB, width=WIDTH, pattern=(BLOCK,), repeats=1, tied=False)
TEACHER = LM(vocab=VOCAB, width=8, pattern=(Block(SoftmaxAttention(heads=2)),), repeats=2)
"""Of another width and mixer."""


def packed(rows: int = 2) -> Batch:
    """Rows of documents that repeat tokens, of one token too, with padding and unscored targets."""
    draw = np.random.default_rng(0)
    segments = np.zeros((rows, LENGTH), np.int32)
    for row, lengths in zip(segments, [(7, 1, 5), (2, 12), (16,), (9, 7)] * rows, strict=False):
        row[: sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    tokens = draw.integers(0, 6, segments.shape).astype(np.int32)
    targets = np.roll(tokens, -1, axis=1)
    targets[segments != np.roll(segments, -1, axis=1)] = -1
    targets[:, -1] = targets[1, 4] = -1
    positions = np.zeros_like(segments)
    for i in range(1, LENGTH):
        goes_on = segments[:, i] == segments[:, i - 1]
        positions[:, i] = np.where(goes_on, positions[:, i - 1] + 1, 0)
    given = {"positions": positions, "segments": segments, "targets": targets}
    return Batch(jnp.asarray(tokens), **jax.tree.map(jnp.asarray, given))


def documents(batch: Batch) -> list[tuple[int, np.ndarray]]:
    """(row, the indices of its tokens) of each document."""
    found = np.asarray(batch.segments)
    return [
        (row, np.flatnonzero(segments == number))
        for row, segments in enumerate(found)
        for number in range(1, segments.max() + 1)
    ]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of one token's logits, real or complex."""
    top = logits.real.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def each_target(batch: Batch):
    """(row, index, the tokens of its document up to it, its target) of what is scored."""
    tokens, targets = np.asarray(batch.tokens), np.asarray(batch.targets)
    for row, places in documents(batch):
        for at in places:
            if targets[row, at] >= 0:
                yield row, at, tokens[row, places[places <= at]], targets[row, at]


def cross_entropy(loss: CrossEntropy, batch: Batch, x: np.ndarray, logits: np.ndarray):
    """Szegedy et al. 2016, section 7: the targets (1 - eps) one-hot + eps / vocab."""
    total, count = 0, 0
    for row, at, _, target in each_target(batch):
        log_p = log_softmax(logits[row, at])
        wanted = np.full(VOCAB, loss.smoothing / VOCAB)
        wanted[target] += 1 - loss.smoothing
        log_z = logits[row, at, 0] - log_p[0]
        total, count = total - (wanted * log_p).sum() + loss.z * log_z**2, count + 1
    return total / count


def unlikelihood(loss: Unlikelihood, batch: Batch, x: np.ndarray, logits: np.ndarray):
    """Welleck et al. 2019, equations 4 and 5."""
    total, count = 0, 0
    for row, at, before, target in each_target(batch):
        p = np.exp(log_softmax(logits[row, at]))
        total -= np.log(p[target])
        total -= loss.alpha * sum(np.log(1 - p[c]) for c in {*before} - {target})
        count += 1
    return total / count


def contrastive(loss: Contrastive, batch: Batch, x: np.ndarray, logits: np.ndarray):
    """Su et al. 2022, equation 3: a document's mean of likelihoods, and of pairs of tokens."""
    total, tokens = 0, 0
    for row, places in documents(batch):
        nll = [
            -log_softmax(logits[row, at])[target]
            for r, at, _, target in each_target(batch)
            if r == row and at in places
        ]
        h = x[row, places]
        h = h / np.sqrt((h**2).sum(axis=-1, keepdims=True))
        pairs = [
            max(0, loss.margin - 1 + h[i] @ h[j], key=np.real)
            for i in range(len(h))
            for j in range(len(h))
            if i != j
        ]
        if nll:
            mean = sum(pairs) / len(pairs) if pairs else 0
            total += len(nll) * (sum(nll) / len(nll) + loss.weight * mean)
        tokens += len(nll)
    return total / tokens


EQUATIONS: list[tuple[object, Callable]] = [
    (CrossEntropy(), cross_entropy),
    (CrossEntropy(smoothing=0.1, z=0.01), cross_entropy),
    (Unlikelihood(alpha=0.5), unlikelihood),
    (Contrastive(margin=0.7, weight=2.0), contrastive),
]
"""Losses, and their equations: (loss, batch, x, logits) -> what is minimised."""


def complex_steps(f: Callable, x: np.ndarray) -> np.ndarray:
    """The gradient of f, which takes real or complex x, in float64."""
    gradient, step = np.zeros(x.shape), 1e-30
    for at in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[at] += 1j * step
        gradient[at] = np.imag(f(moved)) / step
    return gradient


def describe_loss(value) -> str:
    return getattr(value, "__name__", None) or describe(value)


@pytest.mark.parametrize("policy", [Policy(), Policy(compute="bfloat16")], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("loss", "equation"), EQUATIONS, ids=describe_loss)
def test_a_loss_is_its_equation(loss, equation, policy, monkeypatch):
    monkeypatch.setattr("lcx.logits.LOGITS", 2 * VOCAB * 5)  # in pieces, of which the last overlaps
    monkeypatch.setattr("lcx.losses.contrastive.TILE", 5)
    batch, model = packed(), replace(MODEL, policy=policy)
    x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH), policy.compute)
    head = 2 * jax.random.normal(jax.random.key(2), (WIDTH, VOCAB), policy.compute)
    divisor = loss.divisor(batch)

    def minimised(x, head):
        params = nnx.Dict(head=nnx.Dict(kernel=nnx.Param(head)))
        sums = loss(x, batch, partial(over_logits, model, params))
        return sums.minimised / divisor, sums.shown / divisor

    take = jax.jit(jax.value_and_grad(minimised, argnums=(0, 1), has_aux=True))
    (value, shown), (by_x, by_head) = take(x, head)
    x64, head64 = np.asarray(x, np.float64), np.asarray(head, np.float64)
    logits = x64 @ head64
    by_logits = complex_steps(lambda z: equation(loss, batch, x64, z), logits)
    direct = complex_steps(lambda z: equation(loss, batch, z, logits), x64)
    np.testing.assert_allclose(value, equation(loss, batch, x64, logits), rtol=RTOL)
    nats = cross_entropy(CrossEntropy(), batch, x64, logits)
    np.testing.assert_allclose(shown, nats, rtol=RTOL)
    exact = policy.compute == "float32"
    for got, expected in (
        (by_x, by_logits @ head64.T + direct),
        (by_head, np.einsum("btd,btv->dv", x64, by_logits)),
    ):
        rtol = RTOL if exact else 2**-7
        np.testing.assert_allclose(
            np.asarray(got, np.float64), expected, rtol=0, atol=rtol * abs(expected).max()
        )


RTOL = 1e-6
"""Measured: 1.2e-7 of values, 2.0e-7 of the largest of each gradient."""


def taught_by(model: LM = TEACHER) -> Teacher:
    params = jax.jit(model.init)(jax.random.key(5))
    return Teacher(model, jax.tree.map(lambda a: 8 * a, params))  # which is sure of something


def step(loss, model: LM = MODEL, mesh: Mesh | None = None, accumulate: int = 1):
    """The state after one step of packed rows, and its metrics, on a mesh."""
    settings = Train(length=LENGTH, batch=4, steps=2, loss=loss, accumulate=accumulate)
    experiment = Experiment(model=model, train=settings, mesh=mesh or Mesh())
    optimizer, devices = settings.optimizer.transform(10), make_mesh(experiment.mesh)
    with jax.set_mesh(devices):

        def fresh():
            return fresh_state(experiment, optimizer, jax.random.key(0))

        where = shardings(jax.eval_shape(fresh), devices)
        state = jax.jit(fresh, out_shardings=where)()
        batch = jax.device_put(packed(4), NamedSharding(devices, BATCH))
        teacher = taught_by() if isinstance(loss, OfTeacher) else None
        teacher = jax.device_put(teacher, shardings(teacher, devices))
        take = jit_step(experiment, optimizer, where, devices)
        return jax.device_get(take(state, batch, {}, teacher))


EXAMPLES = {
    SequenceUnlikelihood: SequenceUnlikelihood(rate=1.0, prefix=8, new=8, per_row=2, n=2),
    Distillation: Distillation("teacher"),
}
"""Losses whose defaults are for longer rows, or that have none."""
LISTED = (EXAMPLES.get(cls) or cls() for cls in LOSSES.values())
ENTRIES = [loss for loss in LISTED if not isinstance(loss, OfPairs)]
"""Of those of pairs the laws are in `test_dpo.py` and `test_preferences.py`."""

CUTS = [
    {"accumulate": 2, "mesh": Mesh(data=2, seq=2)},
    pytest.param({"accumulate": 4}, marks=pytest.mark.rest),
    pytest.param({"mesh": Mesh(fsdp=2, model=2)}, marks=pytest.mark.rest),
    pytest.param({"mesh": Mesh(seq=4)}, marks=pytest.mark.rest),
]


def same_step(got, expected):
    (state, metrics), (other, expected_metrics) = got, expected
    for a, b in zip(jax.tree.leaves(metrics), jax.tree.leaves(expected_metrics), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-6)
    for a, b in zip(
        jax.tree.leaves(state.optimizer), jax.tree.leaves(other.optimizer), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * np.abs(b).max())


@pytest.fixture(scope="module")
def whole():
    """Steps of whole batches on one device, one of each loss."""
    return {}


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("loss", ENTRIES, ids=describe)
def test_a_loss_does_not_depend_on_how_a_batch_is_cut(loss, cut, whole):
    if isinstance(loss, OfWritten):  # no text is written on a sequence that is cut
        mesh = cut.get("mesh", Mesh())
        cut = cut | {"mesh": replace(mesh, seq=1, data=mesh.data * mesh.seq)}
    if loss not in whole:
        whole[loss] = step(loss)
    same_step(step(loss, **cut), whole[loss])


@pytest.mark.parametrize("loss", ENTRIES, ids=describe)
def test_validation_shows_nats_per_token(loss):
    """Whatever is minimised, so that variants of one file compare."""
    stacked = jax.tree.map(lambda a: a[None], packed())
    shown = []
    for each in (loss, CrossEntropy()):
        settings = Train(length=LENGTH, batch=2, steps=1, loss=each)
        experiment = Experiment(model=MODEL, train=settings)
        params = jax.jit(MODEL.init)(jax.random.key(0))
        shown.append(jax.jit(make_validation(experiment))(params, stacked))
    np.testing.assert_allclose(*shown, rtol=1e-6)
    assert loss.unit == "nats per token"


@pytest.mark.parametrize("gap", [0.0, 0.69, 0.7, 3.0, 20.0, 80.0, 1000.0])
def test_unlikelihood_is_exact_and_finite_for_any_p(gap):
    """1 - p would round to 0 in fp32 from a gap of 17 on, and to 1 at the other tokens."""

    def unlikely(logits):
        return -log_one_minus_p(logits, jax.nn.logsumexp(logits))

    logits = jnp.array([0.0, gap, -1.0, -8.0])
    value, by_logits = jax.jit(lambda z: (unlikely(z), jax.jacrev(unlikely)(z)))(logits)
    z, each = np.asarray(logits, np.float64), np.eye(4, dtype=bool)
    all_but = np.where(each, -np.inf, z)
    others = np.logaddexp.reduce(all_but, axis=1)
    p, share = np.exp(z - np.logaddexp.reduce(z)), np.exp(all_but - others[:, None])
    with np.errstate(divide="ignore"):  # p rounds to 1 in float64, too
        expected = np.where(p > 0.5, np.logaddexp.reduce(z) - others, -np.log1p(-p))
    # measured: 5e-7 of values, 5e-8 of gradients
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(by_logits, p - share, rtol=0, atol=2e-7)
    assert abs(np.asarray(by_logits)).max() <= 1


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repeats_are_all_tokens_of_ngrams_that_stood_before(n):
    draw = np.random.default_rng(0)
    texts = draw.integers(0, 3, (20, 13)).astype(np.int32)
    texts[0], texts[1] = 1, [*(0, 1, 2, 0, 1, 2, 0, 1, 2), *(2, 2, 0, 1)]
    expected = np.zeros(texts.shape, bool)
    for text, marks in zip(texts, expected, strict=True):
        seen = set()
        for i in range(len(text) - n + 1):
            gram = tuple(text[i : i + n])
            marks[i : i + n] |= gram in seen
            seen.add(gram)
    np.testing.assert_array_equal(repeats(jnp.asarray(texts), n), expected)


def test_sequence_unlikelihood_is_that_of_what_the_model_repeats():
    """Written by reading the whole text for every token; the equation in its plain form."""
    loss, batch = EXAMPLES[SequenceUnlikelihood], packed(4)
    params = jax.jit(MODEL.init)(jax.random.key(0))
    read = jax.jit(MODEL)
    texts, rows = [], []
    for row in range(4):
        for begin in (0, 8):
            piece = slice(begin, begin + loss.prefix)
            segments = np.asarray(batch.segments[row, piece])
            text = np.asarray(batch.tokens[row, piece])[segments == segments[-1]]
            if segments[-1]:
                for _ in range(loss.new):
                    at = len(text) - 1
                    whole = jnp.zeros((1, LENGTH), jnp.int32).at[0, : len(text)].set(text)
                    text = np.append(text, read(params, Batch(whole)).x[0, at].argmax())
                texts.append(text)
                rows.append(row)
    assert len(texts) == 6  # two rows end in padding
    marks = [np.asarray(repeats(jnp.asarray(t[None, -loss.new :]), loss.n))[0] for t in texts]
    assert sum(m.sum() for m in marks) > 5

    def plain(params):
        total = 0.0
        for text, row, repeated in zip(texts, rows, marks, strict=True):
            whole = jnp.zeros((1, LENGTH), jnp.int32).at[0, : len(text)].set(text)
            p = jax.nn.softmax(MODEL(params, Batch(whole)).x[0])
            at = np.arange(len(text) - loss.new, len(text))[repeated]
            mean = -jnp.log(1 - p[at - 1, text[at]]).sum() / (loss.new * rows.count(row))
            total += batch.scored[row].sum() * mean
        return total

    def ours(params):
        return loss.of_written(MODEL, params, batch)

    value, gradient = jax.jit(jax.value_and_grad(ours))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(value, expected, rtol=4e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-6 * max(np.abs(b).max(), 1e-3))


@pytest.mark.slow
def test_a_model_writes_in_a_share_of_the_steps():
    norms = {}
    for rate in (0.0, 0.5):
        loss = replace(EXAMPLES[SequenceUnlikelihood], rate=rate, alpha=3.0)
        settings = Train(length=LENGTH, batch=2, steps=20, loss=loss)
        experiment = Experiment(model=MODEL, train=settings)
        optimizer = settings.optimizer.transform(20)
        state = jax.jit(lambda e=experiment, o=optimizer: fresh_state(e, o, jax.random.key(0)))()
        take = jax.jit(make_step(experiment, optimizer))
        there = [take(state._replace(step=jnp.int32(i)), packed())[1] for i in range(20)]
        norms[rate] = np.array([metrics["grad_norm"] for metrics in there])
        assert len({float(metrics["loss"]) for metrics in there}) == 1
    assert len({*norms[0.0]}) == 1
    writes = abs(norms[0.5] - norms[0.0]) > 1e-4
    assert 4 <= writes.sum() <= 16
    assert len({*norms[0.5][writes]}) == 1  # of the same parameters the same text


@pytest.mark.parametrize(
    ("loss", "mesh", "said"),
    [
        (SequenceUnlikelihood(prefix=10, new=7), Mesh(), "longer text than training's rows of 16"),
        (SequenceUnlikelihood(prefix=6, new=7, per_row=3), Mesh(), "do not fit in a row of 16"),
        (SequenceUnlikelihood(prefix=6, new=7), Mesh(seq=2), "cut along a sequence: mesh.seq=2"),
    ],
    ids=range(3),
)
def test_a_training_that_cannot_write_is_refused(loss, mesh, said, texts):
    experiment = tiny(f"{texts}/*.txt")
    settings = replace(experiment.train, length=LENGTH, loss=loss)
    experiment = replace(experiment, train=settings, mesh=mesh)
    with pytest.raises(ValueError, match=f"softmax: train.loss: .*{said}"):
        validate("softmax", experiment, {}, experiment.data.load())


def contrast_alone(x, margin: float, **given):
    """What contrast adds to a loss whose targets are certain."""
    tokens = jnp.zeros(x.shape[:2], jnp.int32)
    batch, loss = Batch(tokens, targets=tokens, **given), Contrastive(margin)
    sums = loss(x, batch, lambda f, x, targets: f(jnp.zeros((*x.shape[:2], 1)), targets))
    return sums.minimised / loss.divisor(batch)


def test_equal_states_cost_the_margin_and_orthogonal_ones_nothing():
    take = jax.jit(jax.value_and_grad(partial(contrast_alone, margin=0.3)))
    equal = jnp.ones((1, 4, 4)) * jnp.arange(1, 5)[:, None]
    np.testing.assert_allclose(take(equal)[0], 0.3, rtol=1e-6)
    assert take(jnp.eye(4)[None])[0] == 0
    assert np.isfinite(take(jnp.zeros((1, 4, 4)))[1]).all()


def test_contrast_takes_memory_linear_in_the_length():
    def temporary(length: int) -> int:
        x = jax.ShapeDtypeStruct((1, length, 8), jnp.float32)
        take = jax.jit(jax.grad(partial(contrast_alone, margin=0.5)))
        return take.lower(x).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(8192), temporary(32768)
    assert long < 4 * short
    assert long < 32768 * 32768 / 64  # bytes: a bit of every eighth pair


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_noise_on_embeddings_does_not_depend_on_how_a_batch_is_cut(cut, whole):
    model = replace(MODEL, embed_noise=5.0)
    if "noise" not in whole:
        whole["noise"] = step(CrossEntropy(), model)
    same_step(step(CrossEntropy(), model, **cut), whole["noise"])
    if "plain" not in whole:
        whole["plain"] = step(CrossEntropy())
    assert abs(whole["noise"][1]["loss"] - whole["plain"][1]["loss"]) > 1e-4


def test_noise_is_uniform_and_smaller_in_longer_documents():
    segments = jnp.repeat(jnp.array([1, 2, 3]), jnp.array([16, 40, 200]))[None]
    keys = jax.random.split(jax.random.key(0), segments.shape)
    ctx = Context(jnp.zeros_like(segments), segments, keys=keys)
    x = jnp.ones((*segments.shape, 64))
    noise = np.asarray(jax.jit(partial(noisy, alpha=5.0, ctx=ctx))(x) - x)
    for number, length in ((1, 16), (2, 40), (3, 200)):
        each, bound = noise[np.asarray(segments) == number], 5 / np.sqrt(length * 64)
        assert 0.99 * bound < abs(each).max() <= bound + 1e-6
        # of at least 1,024 numbers: a standard deviation of 0.018 of the mean, 0.014 of the other
        assert abs(each.mean()) < 0.07 * bound
        assert abs(each.std() / bound - 1 / np.sqrt(3)) < 0.06
    alone = noisy(x, 5.0, ctx._replace(segments=None))
    assert abs(np.asarray(alone - x)).max() <= 5 / np.sqrt(256 * 64) + 1e-6
    assert noisy(x, 5.0, ctx._replace(keys=None)) is x
    assert noisy(x, None, ctx) is x


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CrossEntropy(z=-1), "z cannot be negative, not -1"),
        (lambda: CrossEntropy(smoothing=1), r"smoothing must be in \[0, 1\), not 1"),
        (lambda: CrossEntropy(smoothing=float("nan")), r"smoothing must be in \[0, 1\), not nan"),
        (lambda: Unlikelihood(alpha=-0.1), r"alpha cannot be negative, not -0.1"),
        (lambda: Contrastive(margin=0), r"margin must be in \(0, 2\], not 0"),
        (lambda: Contrastive(weight=-2), "weight cannot be negative, not -2"),
        (lambda: LM(embed_noise=0.0), "embed_noise must be positive, not 0.0"),
        (lambda: SequenceUnlikelihood(rate=1.5), r"rate must be in \[0, 1\], not 1.5"),
        (lambda: SequenceUnlikelihood(alpha=-1), "alpha cannot be negative, not -1"),
        (lambda: SequenceUnlikelihood(prefix=0), "prefix must be at least 1, not 0"),
        (lambda: SequenceUnlikelihood(new=4), "of 4 new tokens no n-gram of 4 can repeat"),
        (lambda: SequenceUnlikelihood(SequenceUnlikelihood()), "beside is one itself"),
        (lambda: SequenceUnlikelihood(Distillation("a")), "cannot have a teacher: Distillation"),
        (lambda: Distillation("a", temperature=0), "temperature must be positive, not 0"),
        (lambda: Distillation("a", temperature=float("nan")), "must be positive, not nan"),
        (lambda: Distillation("a", weight=-0.1), r"weight must be in \[0, 1\], not -0.1"),
    ],
    ids=range(16),
)
def test_settings_that_mean_nothing_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
