"""The laws of writing on: what a mixer reads of ragged prompts, and of tokens one by one."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.block import Block
from lcx.checking.bounds import rounding
from lcx.checking.trial import compiled
from lcx.decoding import BeamSearch, ContrastiveSearch
from lcx.generate import Generator
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.streaming import Streamer
from lcx.types import Batch, Params
from tests import plain_search
from tests.bounds import assert_rounded
from tests.contracts.cases import ALGORITHMS, MIXER_CASES, WIDTH, name

PROMPTS, MORE = (1, 40, 33), 3
VOCAB = 50


@cache
def model_of(sublayer) -> tuple[LM, Params]:
    """A model of one block, and parameters away from their first values."""
    model = LM(vocab=VOCAB, width=WIDTH, pattern=(Block(sublayer),), repeats=1)

    @compiled
    def params() -> Params:
        noise = iter(jax.random.split(jax.random.key(0), 64))
        return jax.tree.map(
            lambda a: a + 0.2 * jax.random.normal(next(noise), a.shape, a.dtype),
            model.init(jax.random.key(1)),
        )

    return model, params()


@pytest.mark.slow
@pytest.mark.parametrize("sublayer", [h for h in ALGORITHMS if h in MIXER_CASES], ids=name)
def test_states_follow_beams_and_candidates(sublayer):
    """Searches of ragged prompts against plain forms, which keep no state."""
    model, params = model_of(sublayer)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, n).astype(np.int32) for n in (2, 9)]
    found = Generator(model, params, BeamSearch(3)).best(prompts, MORE, 3)
    written = Generator(model, params, ContrastiveSearch(3)).write(prompts, MORE)
    read = plain_search.reads(model, params, 9 + MORE)
    for prompt, texts, text in zip(prompts, found, written, strict=True):
        of = read(len(prompt) + MORE)
        best = plain_search.beams(of, prompt.tolist(), MORE, 3, 1.0, set())
        assert [text.tokens.tolist() for text in texts] == [tokens for _, tokens in best]
        expected = plain_search.contrastive(of, prompt.tolist(), MORE, 3, 0.6)
        assert text.tokens.tolist() == expected


@pytest.mark.parametrize("sublayer", MIXER_CASES, ids=name)
def test_ragged_prompts_and_single_tokens_equal_each_text_alone(sublayer):
    model, params = model_of(sublayer)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, VOCAB, n + MORE).astype(np.int32) for n in PROMPTS]

    streamer = Streamer(model, params, Mesh())
    with jax.set_mesh(streamer.mesh):
        prompts = [text[:-MORE] for text in texts]
        lengths = np.array([len(text) for text in texts], np.int32)
        x, state, _ = streamer.prefill(prompts, lengths, 128)
        got = [x]
        for i in range(MORE):
            token = np.array([[text[len(text) - MORE + i]] for text in texts], np.int32)
            at = np.array([[len(text) - MORE + i] for text in texts], np.int32)
            x, state = streamer.advance(token, at, state, np.ones_like(token))
            got.append(x[:, 0])

    longest = max(map(len, texts))

    @jax.jit
    def alone(params, tokens, length):
        lengths = jnp.full((1, longest), length)
        return model.hidden(params, Batch(tokens[None], lengths=lengths)).x[0]

    for row, text in enumerate(texts):
        padded = np.pad(text, (0, longest - len(text)))

        def read(params, padded=padded, text=text):
            whole = alone(params, padded, len(text))
            return whole[len(text) - MORE - 1 : len(text)]

        expected = read(params)
        mine = np.stack([np.asarray(x[row]) for x in got])
        assert_rounded(mine, expected, rounding(read, params))
