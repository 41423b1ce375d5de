"""How the next token is chosen: values worked by hand, laws over the tables, bad settings."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from lcx.decoding import (
    DECODINGS,
    PENALTIES,
    Decoding,
    Filters,
    FrequencyPenalty,
    Greedy,
    MinLength,
    MinP,
    NoRepeatNGram,
    Penalty,
    PresencePenalty,
    RepetitionPenalty,
    Seen,
    Temperature,
    TopK,
    TopP,
    Typical,
    entropy,
)
from lcx.spec import SpecError, check, decode, describe, encode, parse

EXAMPLES = {
    RepetitionPenalty: RepetitionPenalty(1.5),
    PresencePenalty: PresencePenalty(0.7),
    FrequencyPenalty: FrequencyPenalty(0.4),
    NoRepeatNGram: NoRepeatNGram(2),
    MinLength: MinLength(3, stop=(1, 4)),
    TopK: TopK(3, temperature=0.7),
    TopP: TopP(0.7, temperature=1.3),
    MinP: MinP(0.2, temperature=1.3),
    Typical: Typical(0.6),
    Filters: Filters((TopK(4), TopP(0.8)), temperature=1.3),
}
"""Entries that have no defaults."""

VOCAB = 7
PENALTY = [EXAMPLES.get(cls) or cls() for cls in PENALTIES.values()]
DECODING = [EXAMPLES.get(cls) or cls() for cls in DECODINGS.values()]
TWO = (FrequencyPenalty(0.4), NoRepeatNGram(2))
PENALISED = [replace(decoding, penalties=TWO) for decoding in DECODING]

every_penalty = pytest.mark.parametrize("penalty", PENALTY, ids=describe)
every_decoding = pytest.mark.parametrize("decoding", DECODING, ids=describe)
with_penalties = pytest.mark.parametrize(
    "decoding", PENALISED, ids=lambda decoding: type(decoding).__name__
)


def seen(*rows: list[int], prompt: int | list[int] = 0, room: int = 12, beyond: int = 0) -> Seen:
    """Rows of a buffer with room for so many tokens; `beyond` stands after each row's last."""
    tokens = np.full((len(rows), room), beyond, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    prompts = np.broadcast_to(np.asarray(prompt, np.int32), len(rows))
    return Seen(jnp.array(tokens), jnp.array([len(r) for r in rows]), jnp.array(prompts))


def logits(*rows: list[float]) -> jax.Array:
    return jnp.array(rows, jnp.float32)


def chances(*rows: list[float]) -> jax.Array:
    return jnp.log(logits(*rows))


def kept(decoding: Decoding, given: jax.Array, jitted: bool = False) -> list[int]:
    """The token ids that may be drawn of one row's logits."""
    room = ((0, 0), (0, VOCAB - given.shape[1]))  # one shape for all, and so few compilations
    given = jnp.pad(given, room, constant_values=-jnp.inf)
    filtered = jax.jit(decoding.filtered) if jitted else decoding.filtered
    return np.flatnonzero(np.isfinite(filtered(given, seen([]))[0])).tolist()


ROWS = ([2, 3, 2, 3, 2], [5], [1, 1, 4, 1, 1, 4, 0, 1], [0, 6, 5])
PROMPTS = [2, 1, 4, 1]


def ragged(beyond: int = 0) -> Seen:
    return seen(*ROWS, prompt=PROMPTS, beyond=beyond)


def some_logits() -> jax.Array:
    drawn = 2 * jax.random.normal(jax.random.key(1), (len(ROWS), VOCAB))
    return drawn.at[0, 5].set(-jnp.inf).at[2, :3].set(1.0)


# ------------------------------------------------------------------------------ worked by hand


def test_repetition_divides_positive_and_multiplies_negative_logits_once():
    given = logits([4, -2, 1, 3, 0], [4, -2, 1, 3, -jnp.inf])
    row = seen([0, 1, 1, 0, 1], [4, 2], prompt=[2, 2])
    out = RepetitionPenalty(2.0)(given, row)
    np.testing.assert_array_equal(out, logits([2, -4, 1, 3, 0], [4, -2, 0.5, 3, -jnp.inf]))


def test_presence_and_frequency_count_what_was_written_alone():
    given = logits([1, 1, 1, 1])
    row = seen([3, 3, 0, 1, 1, 1], prompt=2)
    np.testing.assert_array_equal(PresencePenalty(0.5)(given, row), logits([0.5, 0.5, 1, 1]))
    np.testing.assert_array_equal(FrequencyPenalty(0.5)(given, row), logits([0.5, -0.5, 1, 1]))
    np.testing.assert_array_equal(FrequencyPenalty(-0.5)(given, row), logits([1.5, 2.5, 1, 1]))


@pytest.mark.parametrize(
    ("n", "row", "banned"),
    [
        (1, [2, 0, 2], [0, 2]),
        (2, [1, 2, 1, 3, 1], [2, 3]),
        (2, [1, 1], [1]),
        (2, [1, 2], []),
        (3, [1, 2, 3, 1, 2], [3]),
        (3, [1, 2, 3, 2, 2], []),
        (3, [1, 2], []),  # shorter than the n-gram, as are the next two
        (3, [1], []),
        (4, [], []),
        (12, [0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0], []),  # just as long as the buffer
        (13, [0] * 12, []),
    ],
)
def test_no_n_gram_twice(n, row, banned):
    out = NoRepeatNGram(n)(jnp.zeros((1, 5)), seen(row, beyond=1))
    assert np.flatnonzero(np.isneginf(out[0])).tolist() == banned


def test_no_stop_token_before_so_many_are_written():
    rows = seen([0] * 4, [0] * 5, [0] * 5, prompt=[2, 2, 4])
    out = MinLength(3, stop=(1, 3))(jnp.zeros((3, 4)), rows)
    expected = [[False, True, False, True], [False] * 4, [False, True, False, True]]
    np.testing.assert_array_equal(np.isneginf(out), expected)


def test_a_ban_of_all_tokens_that_are_left_is_not_heeded():
    given = logits([0, -jnp.inf, 2], [0, 1, 2])
    rows = seen([0, 2], [0, 2])
    expected = logits([0, -jnp.inf, 2], [-jnp.inf, 1, -jnp.inf])
    np.testing.assert_array_equal(NoRepeatNGram(1)(given, rows), expected)
    # the order decides: with all others banned, the stop token may come early
    both = Greedy((NoRepeatNGram(1), MinLength(9, stop=(1,))))
    assert both.choose(jax.random.split(jax.random.key(0), 2), given, rows).tolist() == [2, 1]


P = [0.5, 0.3, 0.15, 0.05]


@pytest.mark.parametrize(
    ("decoding", "given", "expected"),
    [
        (TopP(0.5), chances(P), [0]),  # a mass of just p
        (TopP(0.51), chances(P), [0, 1]),
        (TopP(0.8), chances(P), [0, 1]),
        (TopP(0.81), chances(P), [0, 1, 2]),
        (TopP(1.0), chances(P), [0, 1, 2, 3]),
        (TopP(1e-6), chances(P), [0]),
        (TopP(1e-30), chances(P), [0]),
        (TopP(0.5), logits([1, 1, 1, 1]), [0, 1]),
        (TopP(0.6), logits([1, 1, 1, 1]), [0, 1, 2]),
        (TopP(1e-30), logits([1, 1, 1, 1]), [0]),
        (TopP(0.9), logits([0.0, -0.0, 0.0, -jnp.inf]), [0, 1, 2]),
        (TopP(0.3), logits([-0.0, 0.0, -0.0, -jnp.inf]), [0]),
        (TopP(0.8, temperature=0.5), chances(P), [0, 1]),  # .25 and .09 of .365
        (TopP(0.6, temperature=0.5), chances(P), [0]),
        (MinP(0.6), chances(P), [0, 1]),
        (MinP(0.61), chances(P), [0]),
        (MinP(1.0), chances(P), [0]),
        (MinP(1.0), logits([2, 1, 2]), [0, 2]),
        (MinP(0.0), chances(P), [0, 1, 2, 3]),
        (TopK(2), logits([0, 1, 2, 2, 3]), [2, 3, 4]),
        (TopK(1), logits([3, 1, 3]), [0, 2]),
        (TopK(99), logits([0, 1, 2]), [0, 1, 2]),
        (TopK(3), logits([0, -jnp.inf, 2, -jnp.inf]), [0, 2]),
        # surprisals .69, 1.20, 1.90, 3.00, entropy 1.14: .06, .45, .76, 1.85 away
        (Typical(0.2), chances(P), [1]),
        (Typical(0.7), chances(P), [0, 1]),
        (Typical(0.9), chances(P), [0, 1, 2]),
        (Typical(0.96), chances(P), [0, 1, 2, 3]),
        (Typical(0.1), logits([1, 1, 1, -jnp.inf]), [0, 1, 2]),  # all as near
        (Filters((TopK(3), TopP(0.95))), chances(P), [0, 1, 2]),  # .53, .32, .16 of what is left
        (Filters((TopP(0.95), TopK(3))), chances(P), [0, 1, 2]),
        (Filters((TopK(2), TopP(0.6))), chances(P), [0]),  # .625 of what is left
        (Filters((TopP(0.6), TopK(2))), chances(P), [0, 1]),
        (Greedy(), logits([1, 3, 3, 2]), [1]),
        (Temperature(), logits([1, 3, 3, -jnp.inf]), [0, 1, 2]),
    ],
    ids=str,
)
def test_what_may_be_drawn(decoding, given, expected):
    assert kept(decoding, given) == expected


@pytest.mark.parametrize(
    ("decoding", "expected"), [(TopP(0.5), [0]), (TopP(0.8), [0, 1]), (MinP(0.6), [0, 1])], ids=str
)
def test_edges_stay_where_they_are_when_jitted(decoding, expected):
    assert kept(decoding, chances(P), jitted=True) == expected


def test_penalties_then_temperature_then_filter():
    given = logits([4, 3, 2, 1])
    row = seen([0, 0], prompt=0)
    penalised = Temperature(0.5, (FrequencyPenalty(1.0), RepetitionPenalty(2.0)))
    expected = np.array([1, 3, 2, 1]) / 0.5  # (4 - 2) / 2
    np.testing.assert_allclose(penalised.filtered(given, row)[0], expected - 6)
    turned = Temperature(0.5, (RepetitionPenalty(2.0), FrequencyPenalty(1.0)))
    np.testing.assert_allclose(turned.filtered(given, row)[0] + 6, [0, 6, 4, 2])  # 4 / 2 - 2
    assert TopK(2, penalties=(RepetitionPenalty(2.0),)).filtered(given, row)[0, 0] == -1  # a tie
    assert np.isneginf(TopK(1, penalties=(RepetitionPenalty(2.0),)).filtered(given, row)[0, 0])


def test_entropy_in_nats():
    given = chances(P, [1, 0, 0, 0], [0.25] * 4)
    expected = [-sum(p * math.log(p) for p in P), 0, math.log(4)]
    np.testing.assert_allclose(entropy(given), expected, atol=1e-6)
    np.testing.assert_allclose(entropy(given[:2] + 7), expected[:2], atol=1e-6)
    slope = jax.grad(lambda z: entropy(z).sum())(given[1:])
    assert np.isfinite(slope).all()


# ------------------------------------------------------------------------------ laws of penalties


@every_penalty
def test_a_penalty_is_jitted_and_reads_no_row_but_its_own(penalty):
    given = some_logits()
    whole, jitted = penalty(given, ragged()), jax.jit(penalty)
    np.testing.assert_allclose(jitted(given, ragged()), whole, rtol=1e-6)  # a rounding
    assert whole.dtype == jnp.float32
    assert not np.array_equal(whole, given), "it changes some of these rows"
    for beyond in (4, VOCAB, -1):
        np.testing.assert_array_equal(penalty(given, ragged(beyond)), whole)
    for i, (row, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True)):
        alone = jitted(given[i : i + 1], seen(row, prompt=prompt, room=len(row)))
        np.testing.assert_allclose(alone[0], whole[i], rtol=1e-6)


@every_penalty
def test_a_penalty_leaves_rows_that_hold_nothing_and_have_no_stop_token(penalty):
    given = some_logits()
    if isinstance(penalty, MinLength):
        penalty = replace(penalty, tokens=0)
    np.testing.assert_array_equal(penalty(given, seen(*[[]] * len(given), beyond=3)), given)


@pytest.mark.parametrize(
    "penalty", [RepetitionPenalty(1.0), PresencePenalty(0), FrequencyPenalty(0)]
)
def test_neutral_values_change_nothing(penalty):
    np.testing.assert_array_equal(penalty(some_logits(), ragged()), some_logits())


# ------------------------------------------------------------------------------ laws of decodings


def row_keys(rows: int = len(ROWS)) -> jax.Array:
    return jax.random.split(jax.random.key(5), rows)


@pytest.mark.parametrize("decoding", DECODING + PENALISED, ids=describe)
def test_what_is_kept_has_the_chances_that_it_had(decoding):
    before = some_logits()
    for penalty in decoding.penalties:
        before = penalty(before, ragged())
    temperature = getattr(decoding, "temperature", 1.0)
    after = np.asarray(decoding.filtered(some_logits(), ragged()))
    assert np.isfinite(after).any(1).all()
    for was, now in zip(np.asarray(before) / temperature, after, strict=True):
        there = np.isfinite(now)
        assert np.isfinite(was[there]).all()
        np.testing.assert_allclose(
            now[there] - now[there].max(), was[there] - was[there].max(), atol=1e-5
        )


@with_penalties
def test_a_row_depends_neither_on_the_others_nor_on_what_stands_beyond_it(decoding):
    keys, given, choose = row_keys(), some_logits(), jax.jit(decoding.choose)
    chosen = decoding.choose(keys, given, ragged())
    assert jnp.issubdtype(chosen.dtype, jnp.integer)
    np.testing.assert_array_equal(choose(keys, given, ragged(3)), chosen)
    order = jnp.array([2, 0, 3, 1])
    moved = Seen(*(a[order] for a in ragged()))
    np.testing.assert_array_equal(choose(keys[order], given[order], moved), chosen[order])
    for i in range(len(ROWS)):
        one = slice(i, i + 1)
        alone = choose(keys[one], given[one], Seen(*(a[one] for a in ragged())))
        assert alone[0] == chosen[i]


@with_penalties
def test_jitted_it_keeps_the_same(decoding):
    eager = decoding.filtered(some_logits(), ragged())
    jitted = jax.jit(decoding.filtered)(some_logits(), ragged())
    np.testing.assert_allclose(jitted, eager, rtol=1e-6, atol=1e-6)  # a rounding, of 4 at most


@with_penalties
@pytest.mark.parametrize("scale", [1, 1e30])
def test_temperature_0_is_greedy(decoding, scale):
    given = some_logits() * scale
    expected = given
    for penalty in decoding.penalties:
        expected = penalty(expected, ragged())
    cold = decoding if isinstance(decoding, Greedy) else replace(decoding, temperature=0)
    chosen = cold.choose(row_keys(), given, ragged())
    np.testing.assert_array_equal(chosen, jnp.argmax(expected, axis=1))
    only = np.isfinite(cold.filtered(given, ragged()))
    np.testing.assert_array_equal(only, np.arange(VOCAB) == np.asarray(chosen)[:, None])


@pytest.mark.parametrize("temperature", [2e-38, 1e-6, 1e30])
def test_extreme_temperatures_draw_what_is_there(temperature):
    given = some_logits().at[0, 6].set(3e38).at[0, :5].set(-3e38)
    decoding = TopP(0.9, temperature)
    assert not np.isnan(decoding.filtered(given, ragged())).any()
    chosen = decoding.choose(row_keys(), given, ragged())
    assert np.isfinite(given[np.arange(len(ROWS)), chosen]).all()
    if temperature < 1:
        largest = given.max(1)
        np.testing.assert_array_equal(given[np.arange(len(ROWS)), chosen], largest)


@every_decoding
def test_tokens_are_drawn_as_often_as_they_are_likely(decoding):
    draws = 20_000
    one, nothing = logits([2.0, 1.5, 1.0, 0.5, 0.0, -2.0, -jnp.inf]), seen([])
    expected = np.exp(np.asarray(decoding.filtered(one, nothing), np.float64))[0]
    expected *= draws / expected.sum()
    given = jnp.broadcast_to(one, (draws, VOCAB))
    held = Seen(*(jnp.broadcast_to(a, (draws, *a.shape[1:])) for a in nothing))
    counts = np.bincount(jax.jit(decoding.choose)(row_keys(draws), given, held), minlength=VOCAB)
    there = expected > 0
    assert counts[~there].sum() == 0
    if there.sum() > 1:
        assert chisquare(counts[there], expected[there]).pvalue > 0.01


def test_no_token_without_a_chance_is_drawn_where_prefix_sums_round(monkeypatch):
    vocab = 4096
    ids = np.arange(vocab)
    given = jax.random.normal(jax.random.key(0), (1, vocab))
    given = jnp.where(ids % 9 == 0, given, -jnp.inf)
    summed = jnp.cumsum(jax.nn.softmax(given), axis=1)[0]
    forbidden = np.flatnonzero((np.diff(summed, prepend=0) > 0) & (ids % 9 != 0))
    numbers = summed[forbidden - 1] / summed.max()
    naive = jnp.argmax(summed > numbers[:, None] * summed.max(), axis=1)
    assert (naive % 9 != 0).any(), "sums that round do rise where nothing is added"

    monkeypatch.setattr(jax.random, "uniform", lambda key: numbers[jax.random.key_data(key)[1]])
    rows = len(numbers)
    keys = jax.vmap(jax.random.key)(jnp.arange(rows))
    chosen = Temperature().choose(keys, jnp.repeat(given, rows, 0), seen(*[[]] * rows))
    assert (chosen % 9 == 0).all()


# ------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("spec", PENALTY + PENALISED, ids=describe)
def test_entries_are_specs(spec):
    types = DECODINGS | PENALTIES
    check(spec)
    assert decode(encode(spec), types) == parse(describe(spec), types) == spec
    assert isinstance(spec, Decoding if type(spec).__name__ in DECODINGS else Penalty)
    assert hash(spec) == hash(replace(spec))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Temperature(-1.0)", r"temperature must be 0 \(greedy\) or a positive number.*not -1.0"),
        ("TopP(0.9, temperature=inf)", "temperature must be"),
        ("TopP(0.9, temperature=1e-40)", "temperature must be"),
        ("TopP(0.0)", "p must be above 0 and at most 1, not 0.0"),
        ("TopP(1.1)", "p must be above 0 and at most 1"),
        ("MinP(-0.1)", r"p must be in \[0, 1\], not -0.1"),
        ("MinP(1.5)", r"p must be in \[0, 1\]"),
        ("Typical(0.0)", "mass must be above 0 and below 1, not 0.0"),
        ("Typical(1.0)", "mass must be above 0 and below 1"),
        ("Filters(())", "filters must be at least one"),
        ("Filters((TopK(3, temperature=0.5),))", "temperature and penalties are its own"),
        ("TopK(0)", "k must be at least 1, not 0"),
        ("TopK(2.5)", "k: expected int, got 2.5"),
        ("RepetitionPenalty(0.0)", "factor must be positive and finite, not 0.0; 1 changes"),
        ("RepetitionPenalty(inf)", "factor must be positive and finite"),
        ("PresencePenalty(inf)", "amount must be finite, not inf"),
        ("FrequencyPenalty(-inf)", "amount must be finite, not -inf"),
        ("NoRepeatNGram(0)", "n must be at least 1, not 0"),
        ("MinLength(-1, stop=(2,))", "tokens cannot be negative, not -1"),
        ("MinLength(3, stop=())", "stop must be one or more token ids"),
        ("MinLength(3, stop=(-1,))", "stop must be one or more token ids"),
        ("Greedy(penalties=NoRepeatNGram(2))", r"a tuple of one is written \(x,\)"),
        ("TopP(0.9, penalties=(TopK(3),))", "expected"),
    ],
)
def test_bad_settings_are_refused(text, message):
    with pytest.raises(SpecError, match=message):
        parse(text, DECODINGS | PENALTIES)


def test_a_stop_token_beyond_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="stop token 300 is not among the 7 token ids, 0 to 6"):
        MinLength(3, stop=(1, 300))(some_logits(), ragged())
