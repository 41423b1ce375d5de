"""Text out of a model: what ends it, what it depends on, and the command."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.block import Block
from lcx.decoding import Greedy, Temperature
from lcx.generate import STEPS, Generator
from lcx.generate.guarded import Guarded, guarded
from lcx.generate.stops import StopStrings
from lcx.generate.written import Begun, Part, Written
from lcx.mixers import RWKV7, SoftmaxAttention
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.positions import Learned, NoPE
from lcx.repetition import RepetitionGuard, Resample, Separate
from lcx.types import Batch
from tests.test_cli import lcx

PATTERN = (Block(SoftmaxAttention(heads=2)), Block(RWKV7()))
MODEL = LM(vocab=50, width=64, pattern=PATTERN, repeats=1)
NEW = 2 * STEPS + 3
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 50, n).astype(np.int32) for n in (5, 40, 1, 33)]


class Letters:
    """Seven tokens: a letter, two or three of them, and BOS."""

    pieces = (b"a", b"b", b"c", b"ab", b"bca", b"\n", b"")
    vocab_size, bos, fingerprint = 7, 6, "letters"
    byte_lengths = np.array([len(piece) for piece in pieces], np.int32)
    special = {"<s>": bos}  # noqa: RUF012

    def encode(self, text: bytes) -> np.ndarray:
        return np.array([self.pieces.index(bytes([byte])) for byte in text], np.int32)

    def decode(self, ids) -> bytes:
        return b"".join(self.pieces[i] for i in ids)


@pytest.fixture(scope="module")
def params():
    made = jax.jit(MODEL.init)(jax.random.key(0))
    wave = jax.tree.map(lambda a: 0.3 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), made)
    return jax.tree.map(jnp.add, made, wave)


@pytest.fixture(scope="module")
def greedy(params):
    return Generator(MODEL, params).write(PROMPTS, NEW)


def test_greedy_text_is_the_likeliest_token_each_time(params, greedy):
    logits = jax.jit(lambda tokens: MODEL(params, Batch(tokens)).x)
    for prompt, written in zip(PROMPTS, greedy, strict=True):
        whole = np.concatenate([prompt, written.tokens])
        padded = np.pad(whole, (0, 40 + NEW - len(whole)))
        best = np.asarray(logits(padded[None])[0].argmax(-1))
        np.testing.assert_array_equal(written.tokens, best[len(prompt) - 1 : len(whole) - 1])
        assert len(written.tokens) == NEW
        assert not written.stopped


def test_a_row_depends_on_its_prompt_and_seed_alone(params):
    generator = Generator(MODEL, params, Temperature(1.0))
    together = generator.write(PROMPTS, NEW, seed=3)
    for row in (1, 2):
        (alone,) = generator.write([PROMPTS[row]], NEW, seed=3 + row)
        np.testing.assert_array_equal(alone.tokens, together[row].tokens)
    again = generator.write(PROMPTS, NEW, seed=4)
    assert any((a.tokens != b.tokens).any() for a, b in zip(again, together, strict=True))


def test_parts_are_the_whole(params, greedy):
    parts = list(Generator(MODEL, params).stream(PROMPTS, NEW))
    assert [len(part[0].tokens) for part in parts] == [STEPS, STEPS, 3]
    for row, whole in enumerate(greedy):
        np.testing.assert_array_equal(
            np.concatenate([part[row].tokens for part in parts]), whole.tokens
        )


def test_a_stop_token_ends_its_row_alone(params, greedy):
    stop = int(greedy[1].tokens[4])
    stopped = Generator(MODEL, params, Greedy(), stop=[stop]).write(PROMPTS, NEW)
    for written, whole in zip(stopped, greedy, strict=True):
        ends = np.flatnonzero(whole.tokens == stop)
        first = ends[0] if len(ends) else NEW
        assert written.stopped == bool(len(ends))
        np.testing.assert_array_equal(written.tokens, whole.tokens[:first])


def test_ids_that_the_tokenizer_has_not_are_never_written(params):
    smaller = Generator(MODEL, params, Temperature(9.0), tokenizer=Letters())
    assert {int(t) for w in smaller.write(PROMPTS, NEW) for t in w.tokens} == set(range(7))


@pytest.mark.parametrize(
    ("text", "strings", "kept"),
    [
        ([0, 1, 5, 2], ["\n"], [0, 1]),
        ([0, 3, 4, 2], ["bb"], [0, 0]),  # within "ab" and into "bca": "a" of "ab" is kept
        ([4, 4, 4], ["ab", "ca"], [1]),  # the one that comes first
        ([0, 6, 1], ["ab"], []),
        ([0, 1, 2], ["ca"], None),
    ],
)
def test_a_stop_string_begins_anywhere(text, strings, kept):
    stops = StopStrings(strings, Letters())
    found = stops.cut(np.array(text, np.int32))
    assert (None if found is None else found.tolist()) == kept


def test_stop_strings_end_texts_and_parts_never_show_what_is_cut(params):
    drawn = Generator(MODEL, params, Temperature(9.0), tokenizer=Letters())
    whole = [Letters().decode(text.tokens) for text in drawn.write(PROMPTS, NEW)]
    stops = [b"aa", b"cb", b"c\n"]
    stopping = Generator(
        MODEL,
        params,
        Temperature(9.0),
        stop_strings=[stop.decode() for stop in stops],
        tokenizer=Letters(),
    )
    parts = list(stopping.stream(PROMPTS, NEW))
    for row, text in enumerate(whole):
        ends = [text.find(stop) for stop in stops if stop in text]
        shown = b"".join(Letters().decode(part[row].tokens) for part in parts)
        assert shown == text[: min(ends, default=len(text))]
        assert parts[-1][row].stopped == bool(ends)
    assert any(part[-1].stopped for part in parts)


LOOPS = RepetitionGuard(n=3, window=12)
"""Of a model that repeats the same six tokens for ever."""


@pytest.fixture(scope="module")
def ended(params):
    return Generator(MODEL, params).write(PROMPTS, NEW, guard=LOOPS)


def test_a_guard_ends_a_text_where_it_loops(greedy, ended):
    for text, whole in zip(ended, greedy, strict=True):
        watch = LOOPS.watch()
        starts = [start for token in whole.tokens if (start := watch.add(token)) is not None]
        np.testing.assert_array_equal(text.tokens, whole.tokens[: starts[0] if starts else NEW])
        assert text.loops == bool(starts)
        assert not text.stopped
    assert any(text.loops for text in ended)


def test_a_guard_resamples_from_where_it_loops(params, greedy, ended):
    guard = replace(LOOPS, act=Resample(Temperature(3.0), tokens=5), most=2)
    generator = Generator(MODEL, params)
    together = generator.write(PROMPTS, NEW, guard=guard)
    for text, before in zip(together, ended, strict=True):
        np.testing.assert_array_equal(text.tokens[: len(before.tokens)], before.tokens)
        assert text.loops >= before.loops
        assert len(text.tokens) == NEW or text.loops == 3
        assert LOOPS.loop(text.tokens.tolist()) is None
    (alone,) = generator.write(PROMPTS[1:2], NEW, seed=1, guard=guard)
    np.testing.assert_array_equal(alone.tokens, together[1].tokens)


def test_a_guard_that_sees_nothing_changes_nothing(params):
    generator = Generator(MODEL, params, Temperature(1.0))
    watched = generator.write(PROMPTS, NEW, guard=RepetitionGuard(n=9, window=400))
    for text, whole in zip(watched, generator.write(PROMPTS, NEW), strict=True):
        np.testing.assert_array_equal(text.tokens, whole.tokens)


def test_a_stop_string_that_began_before_a_text_goes_on_is_cut_whole(params):
    """By tokens that a guard has kept: `Part.kept` says how many of them stay."""
    generator = Generator(MODEL, params, Temperature(9.0), tokenizer=Letters())
    text = Begun(np.array([2, 0, 2], np.int32), 1, 8, 11, jax.random.key(0))
    ((plain,),) = generator.continued([text])
    first = Letters().decode(plain.added.tokens)[:1].decode()
    stopping = Generator(
        MODEL, params, Temperature(9.0), stop_strings=["ac" + first], tokenizer=Letters()
    )
    ((cut,),) = stopping.continued([text])
    assert (cut.kept, cut.added.tokens.tolist(), cut.added.stopped) == (0, [], True)
    assert plain.kept == 2
    act = replace(LOOPS, act=Separate("ab\n"))
    clash = Generator(MODEL, params, stop_strings=["b"], tokenizer=Letters())
    with pytest.raises(ValueError, match="holds a stop string"):
        clash.write(PROMPTS, NEW, guard=act)


def test_a_guard_separates_what_loops(params):
    """By a model that counts to three for ever, from wherever it begins."""

    def counting(begun):
        (text,) = begun
        written = np.arange(text.new, dtype=np.int32) % 3
        yield [Part(len(text.tokens) - text.prompt, Written(written, stopped=False), over=True)]

    guard = replace(LOOPS, act=Separate("ab"), most=2)
    text = Guarded(np.array([7], np.int32), 30, guard, 0, [8, 9])
    (written,) = guarded(counting, counting, [text])
    assert written.tokens.tolist() == [0, 1, 2, 8, 9, 0, 1, 2, 8, 9, 0, 1, 2]
    assert written.loops == 3  # the third ends it
    with pytest.raises(ValueError, match="Separate takes a tokenizer"):
        Generator(MODEL, params).write(PROMPTS, NEW, guard=guard)


def test_a_mesh_of_rows_writes_the_same(params, greedy):
    cut = Mesh(data=2, model=2)
    for written, whole in zip(
        Generator(MODEL, params, cut=cut).write(PROMPTS[:3], NEW), greedy, strict=False
    ):
        np.testing.assert_array_equal(written.tokens, whole.tokens)


LEARNED = LM(
    vocab=50, width=32, positions=Learned(40),
    pattern=(Block(SoftmaxAttention(heads=2, position=NoPE())),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "prompts", "new", "message"),
    [
        (MODEL, [], 4, "there is no prompt"),
        (MODEL, [PROMPTS[0], PROMPTS[0][:0]], 4, "prompt 1 is empty"),
        (MODEL, [PROMPTS[0]], 0, "at least one new token is needed, not 0"),
        (MODEL, [PROMPTS[0], PROMPTS[0] + 50], 4, "prompt 1: token .. is not among the 50 ids"),
        (LEARNED, [PROMPTS[3]], 8, "33 tokens and 8 new ones are 41; the model has learned"),
    ],
)
def test_what_cannot_be_written_is_refused(model, prompts, new, message):
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        Generator(model, abstract).write(prompts, new)


def test_stop_tokens_that_there_are_not_are_refused(params):
    with pytest.raises(ValueError, match="stop: token 50 is not among the 50 ids"):
        Generator(MODEL, params, stop=[3, 50])


def test_a_cut_along_the_sequence_is_refused(params):
    with pytest.raises(ValueError, match=r"mesh\.seq=2"):
        Generator(MODEL, params, cut=Mesh(seq=2))


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    """A trained run of the smallest experiment."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_TEXTS", f"{texts}/*.txt")
        file = str(MODEL_FILE)
        assert lcx("train", file, "--out", out, "--only", "softmax") == 0
    return out / "softmax"


MODEL_FILE = __file__.replace("test_generate", "tiny")


def test_the_command_writes_text_and_ids(run, capsys):
    asked = ("generate", run, "--prompt", "the of", "--max-new", "20")
    assert lcx(*asked) == 0
    assert capsys.readouterr().out.startswith("the of")
    assert lcx(*asked, "--json", "--decoding", "Temperature(0.8)", "--samples", "2") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"]["ids"] == [256, *b"the of"]
    assert [text["seed"] for text in found["written"]] == [0, 1]
    assert all(len(text["ids"]) == 20 for text in found["written"])
    assert lcx(*asked, "--max-new", "60", "--stop", " ", "--json") == 0
    (text,) = json.loads(capsys.readouterr().out)["written"]
    assert " " not in text["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "a", "--decoding", "Gredy()"], "did you mean 'Greedy'?"),
        (["--prompt", "a", "--decoding", "RepetitionPenalty(1.2)"], "is none; write Greedy(), say"),
        (["--prompt", "a", "--samples", "0"], "--samples must be at least 1"),
        (["--prompt", "a", "--samples", "2"], "draws nothing, and writes the same text each time"),
        (["--prompt", "a", "--guard", "Temperature(1.0)"], "write RepetitionGuard(), say"),
        (["--prompt", "a", "--decoding", "BeamSearch(2, temperature=1)"], "unknown field"),
        (["--prompt", "a", "--decoding", "BeamSearch(2)", "--samples", "3"], "keeps 2"),
        (
            "--prompt a --decoding BeamSearch(2) --samples 2 --guard RepetitionGuard()".split(),
            "a BeamSearch without a guard",
        ),
    ],
)
def test_the_command_refuses_by_a_line(run, arguments, message, capsys):
    assert lcx("generate", run, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_is_no_run_says_where_one_is(run, capsys):
    assert lcx("generate", run.parent, "--prompt", "a") == 2
    assert "it holds the runs softmax" in " ".join(capsys.readouterr().err.split())
