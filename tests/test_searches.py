"""Beams and contrastive search: against plain forms, in ragged batches, and what ends them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.block import Block
from lcx.data.byte_level import ByteTokenizer
from lcx.decoding import BeamSearch, ContrastiveSearch, Greedy, NoRepeatNGram, RepetitionPenalty
from lcx.generate import Generator
from lcx.generate.written import Begun
from lcx.mixers import RWKV7, SoftmaxAttention
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from tests import plain_search

MODEL = LM(
    vocab=23, width=32, pattern=(Block(SoftmaxAttention(heads=2)), Block(RWKV7())), repeats=1
)
NEW = 7
RNG = np.random.default_rng(1)
PROMPTS = [RNG.integers(0, 23, n).astype(np.int32) for n in (5, 20, 1)]
STOP = (3, 11)


@pytest.fixture(scope="module")
def params():
    made = jax.jit(MODEL.init)(jax.random.key(0))
    wave = jax.tree.map(lambda a: 0.4 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), made)
    return jax.tree.map(jnp.add, made, wave)


@pytest.fixture(scope="module")
def of(params):
    return plain_search.reads(MODEL, params, 20 + NEW)(20 + NEW)


@pytest.mark.parametrize("stop", [(), STOP], ids=["no stop", "stops"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_beams_are_those_of_the_plain_form(params, of, penalty, stop):
    k = 4
    generator = Generator(MODEL, params, BeamSearch(k, penalty), stop=stop)
    for prompt, found in zip(PROMPTS, generator.best(PROMPTS, NEW, k), strict=True):
        expected = plain_search.beams(of, prompt.tolist(), NEW, k, penalty, set(stop))
        assert [text.tokens.tolist() for text in found] == [text for _, text in expected]
        np.testing.assert_allclose([t.score for t in found], [s for s, _ in expected], rtol=2e-5)
        assert [text.stopped for text in found] == [len(text) < NEW for _, text in expected]


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.6), (3, 0.2), (8, 1.0)])
def test_contrastive_search_is_the_paper_s(params, of, k, alpha):
    written = Generator(MODEL, params, ContrastiveSearch(k, alpha)).write(PROMPTS, NEW)
    for prompt, text in zip(PROMPTS, written, strict=True):
        expected = plain_search.contrastive(of, prompt.tolist(), NEW, k, alpha)
        assert text.tokens.tolist() == expected


ALIKE = (
    (ContrastiveSearch(k=4, alpha=0.0), Greedy()),
    (BeamSearch(1, length_penalty=0.0), Greedy()),
    (
        ContrastiveSearch(k=1, penalties=(RepetitionPenalty(1.3), NoRepeatNGram(2))),
        Greedy((RepetitionPenalty(1.3), NoRepeatNGram(2))),
    ),
    (BeamSearch(1, penalties=(NoRepeatNGram(2),)), Greedy((NoRepeatNGram(2),))),
)


@pytest.mark.parametrize(("search", "decoding"), ALIKE, ids=lambda spec: type(spec).__name__)
def test_searches_that_have_no_choice_are_greedy(params, search, decoding):
    generator = Generator(MODEL, params, search, stop=STOP)
    expected = generator.by(decoding).write(PROMPTS, 40)
    for text, other in zip(generator.write(PROMPTS, 40), expected, strict=True):
        np.testing.assert_array_equal(text.tokens, other.tokens)
        assert text.stopped == other.stopped


@pytest.mark.slow
def test_a_mesh_of_rows_finds_the_same(params):
    cut = Generator(MODEL, params, BeamSearch(3), stop=STOP, cut=Mesh(data=2))
    whole = Generator(MODEL, params, BeamSearch(3), stop=STOP).write(PROMPTS, 20)
    for text, other in zip(cut.write(PROMPTS, 20), whole, strict=True):
        np.testing.assert_array_equal(text.tokens, other.tokens)


def test_beams_that_go_on_with_a_text_are_scored_by_what_they_write(params):
    """As they are in a guard's `Resample`: what was written before counts for penalties alone."""
    generator, key = Generator(MODEL, params, BeamSearch(3)), jax.random.key(0)
    (whole,) = generator.best([PROMPTS[0]], 6, 1)[0]
    (parts,) = generator.continued([Begun(PROMPTS[0], 2, 6, len(PROMPTS[0]) + 6, key)])
    np.testing.assert_array_equal(parts[0].added.tokens, whole.tokens)
    assert parts[0].added.score == whole.score


def test_a_better_search_finds_likelier_texts(params):
    """So it is for most prompts, if not for each."""
    prompts = [RNG.integers(0, 23, 4).astype(np.int32) for _ in range(8)]
    generator = Generator(MODEL, params, BeamSearch(1))
    scores = [
        np.mean([text.score for text in generator.by(BeamSearch(k)).write(prompts, 12)])
        for k in (1, 4)
    ]
    assert scores[1] > scores[0]


def test_beams_come_whole_and_only_as_many_as_there_are(params):
    generator = Generator(MODEL, params, BeamSearch(2))
    lengths = [len(part[0].tokens) for part in generator.stream(PROMPTS, 40)]
    assert lengths == [0, 0, 40]
    with pytest.raises(ValueError, match=r"the 3 best of a prompt: BeamSearch.* keeps 2"):
        generator.best(PROMPTS, 4, 3)
    with pytest.raises(ValueError, match="keeps 1"):
        generator.by(Greedy()).best(PROMPTS, 4, 1)
    with pytest.raises(ValueError, match="compares whole texts"):
        Generator(MODEL, params, BeamSearch(2), stop_strings=["a"], tokenizer=ByteTokenizer())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BeamSearch(0), "beams must be at least 1, not 0"),
        (lambda: BeamSearch(2, float("inf")), "length_penalty must be 0 or positive"),
        (lambda: BeamSearch(2, -1.0), "length_penalty must be 0 or positive"),
        (lambda: ContrastiveSearch(0), "k must be at least 1, not 0"),
        (lambda: ContrastiveSearch(4, 1.1), r"alpha must be in \[0, 1\], not 1\.1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
