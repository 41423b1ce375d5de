"""`Repetition`: its numbers by hand, the author's beside them, ended and resumed, and its page."""

import io
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lcx import streaming
from lcx.command.pages import check_together
from lcx.data import BPE, MQAR
from lcx.decoding import Greedy, Temperature, TopP
from lcx.evaluation import intervals
from lcx.evaluation.evaluate import evaluate
from lcx.evaluation.metrics import about
from lcx.generate import Generator
from lcx.parallel.mesh import Mesh
from lcx.parallel.preemption import Preempted
from lcx.positions import Learned
from lcx.protocols import Repetition, SameTargets, TokenRepetition
from lcx.protocols.repetition import pseudo_values
from lcx.repetition import RepetitionGuard, Resample
from lcx.repetition import measures as of
from lcx.repetition.ratios import by_length
from lcx.repetition.samples import by_prompt, self_bleu, similarities
from lcx.repetition.sentences import lines, sentences
from lcx.report.curves import draw_further, draw_measure
from lcx.report.look import LIGHT
from lcx.report.page import render_page
from lcx.report.pictures import pictures_of
from lcx.report.sentences import finding
from lcx.report.summary import summarise
from lcx.report.writer import print_table
from lcx.spec import encode
from lcx.types import Batch
from lcx.validation import validate
from lcx.variants import check_links
from tests.reports import evaluation as result_of
from tests.test_evaluate import After
from tests.tiny import tiny

PROTOCOL = Repetition(
    prompt=8, lengths=(8, 20), decoding=Temperature(1.0), samples=2, documents=4, seed=3
)


@pytest.fixture(scope="module")
def experiment(texts):
    return replace(tiny(f"{texts}/*.txt"), evaluation=PROTOCOL)


@pytest.fixture(scope="module")
def corpus(experiment):
    return experiment.data.load()


@pytest.fixture(scope="module")
def params(experiment):
    """Not quite random: the same tokens come again."""
    made = jax.jit(experiment.model.init)(jax.random.key(0))
    return jax.tree.map(lambda a: a + 0.3 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), made)


@pytest.fixture(scope="module", autouse=True)
def _two_prompts_at_a_time():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "PIECE", 32)
        patch.setattr(streaming, "ROWS", 4)
        yield


@pytest.fixture(scope="module")
def measured(experiment, params, corpus):
    return evaluate(experiment, params, corpus, "it", Console(quiet=True))[0]


def test_numbers_are_those_of_the_generators_texts_by_hand(measured, experiment, params, corpus):
    texts = corpus.targets(PROTOCOL).texts
    prompts = [np.array([256, *text.ids[:8]], np.int32) for text in texts for _ in range(2)]
    generator = Generator(experiment.model, params, PROTOCOL.decoding, tokenizer=corpus.tokenizer)
    written = [w.tokens for w in generator.write(prompts, 20, PROTOCOL.seed)]
    assert measured.shown["written"] == corpus.tokenizer.decode(written[0]).decode(errors="replace")

    def said(ids):
        return of.repeated(sentences(corpus.tokenizer.decode(ids).decode(errors="replace")))

    def same_lines(ids):
        return of.repeated(lines(corpus.tokenizer.decode(ids).decode(errors="replace")))

    by_hand = {
        "repeated_lines": same_lines,
        "seq_rep_4": of.seq_rep,
        "repeated_sentences": said,
        "same_token": of.same_as_before,
        "diversity": of.text_diversity,
        "distinct_2": of.distinct,
        "entropy": of.entropy,
    }
    for i, point in enumerate(measured.contexts):
        assert (point["context"], point["reach"]) == ((8, 16), (20, 28))[i]
        assert [d["name"] for d in point["documents"]] == [text.name for text in texts]
        for key, measure in by_hand.items():
            values, some = by_length(measure, written, PROTOCOL.lengths).scores("macro")
            assert some.all() or key in ("repeated_sentences", "repeated_lines")
            mean = intervals.mean(values[i].reshape(4, 2).mean(axis=1)[None], np.ones(4))
            assert point[key] == pytest.approx(mean.value, rel=1e-12)
            low, high = mean.interval()
            assert point[f"{key}_ci95"][1] == pytest.approx(
                high if key == "entropy" else min(1.0, high), rel=1e-9
            )
            assert low <= point[f"{key}_ci95"][0] + 1e-12
        cut = [text[: point["context"]] for text in written]
        alike = by_prompt(similarities(cut), [0, 0, 1, 1, 2, 2, 3, 3])
        assert point["shared_within"] == pytest.approx(alike.within.mean("macro"), rel=1e-12)
        assert point["shared_between"] == pytest.approx(alike.between.mean("macro"), rel=1e-12)
        bleu = np.mean([self_bleu(cut[2 * k : 2 * k + 2]).mean() for k in range(4)])
        assert point["self_bleu"] == pytest.approx(bleu, rel=1e-12)
        assert point["pooled_diversity"] == of.diversity(cut[::2], "pooled")
        assert point["distinct_2_of_all"] == of.distinct_of_all(cut[::2], 2)
        assert point["uniq_seq"] == of.uniq(cut[::2])
        assert np.isnan(point["uniq_seq_ci95"]).all()


def test_the_author_is_measured_where_the_models_write(measured, corpus):
    texts = corpus.targets(PROTOCOL).texts
    for point in measured.reference:
        own = [text.ids[8 : 8 + point["context"]] for text in texts]
        expected = np.mean([of.seq_rep(ids).part / of.seq_rep(ids).whole for ids in own])
        assert point["seq_rep_4"] == pytest.approx(expected, rel=1e-12)
        assert point["uniq_seq"] == of.uniq(own)
        assert np.isnan(point["self_bleu"])  # an author wrote but one
    assert measured.shown["author"] == bytes(texts[0].ids[8:28].tolist()).decode(errors="replace")


def test_pseudo_values_are_those_of_leaving_one_prompt_out():
    alike = np.random.default_rng(0).random((5, 5))
    alike = (alike + alike.T) / 2

    def mean(kept: list[int]) -> float:
        return float(np.mean([alike[i, j] for i in kept for j in kept if i != j]))

    others = [[j for j in range(5) if j != i] for i in range(5)]
    means = np.array([alike[i, others[i]].mean() for i in range(5)])
    expected = [5 * mean([*range(5)]) - 4 * mean(left) for left in others]
    np.testing.assert_allclose(pseudo_values(means), expected, rtol=1e-12)
    assert np.isnan(pseudo_values(means[:2])).all()


def test_what_was_ended_goes_on_to_the_same_texts(measured, experiment, params, corpus, tmp_path):
    draft = tmp_path / "it.draft.jsonl"

    def scores(preemption=None):
        asked = (experiment, params, corpus, "it", Console(quiet=True), preemption, draft)
        return evaluate(*asked)[0]

    with pytest.raises(Preempted, match="it: 2 of 4 excerpts are evaluated"):
        scores(After(4))  # within the second group, of which nothing is kept
    first, _ = draft.read_text().splitlines()
    draft.write_text(f"{first}\n")  # killed between the two of the first group
    for a, b in zip(scores().contexts, measured.contexts, strict=True):
        assert a["documents"] == b["documents"]
    assert len(draft.read_text().splitlines()) == 4


def _result(name: str, measured, protocol=PROTOCOL, seed: int = 0):
    result = result_of(name, {8: 2.0, 20: 2.0}, seed=seed)
    return {
        **result,
        "protocol": encode(protocol),
        "about": about(protocol),
        "contexts": measured.contexts,
        "reference": measured.reference,
        "shown": measured.shown,
    }


def _blank(look, narrow):
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def test_the_page_says_what_its_points_are_and_shows_the_author(measured):
    other = replace(PROTOCOL, decoding=TopP(0.5))
    report = summarise([_result("softmax", measured), _result("<nucleus>", measured, other)], {})
    twice = summarise([_result("it", measured, seed=i) for i in range(2)], {})["variants"]["it"]
    assert twice["contexts"][-1]["uniq_seq"] == measured.contexts[-1]["uniq_seq"]
    assert report["best"][-1]["finite"] == ["softmax", "<nucleus>"]  # the author is not ranked
    human = measured.reference[-1]["seq_rep_4"]
    assert f"The human continuation has {human:.2f}" in finding(report)
    assert "Nearest to it is softmax, " in finding(report)
    wide = draw_measure(report, LIGHT, narrow=False).axes[0]
    assert wide.get_xlabel() == "generated length (tokens)"
    assert any("human continuation" in text.get_text() for text in wide.texts)
    titles = [ax.get_title(loc="left") for ax in draw_further(report, LIGHT, narrow=True).axes]
    assert [title.replace("\n", " ") for title in titles] == [m.name for m in PROTOCOL.measures[1:]]
    pictures = pictures_of(report, {})
    assert {"share_of_repeated_4_grams_vs_length", "further_measures_vs_length"} < set(pictures)
    authors = [r for r in next(iter(pictures.values())).rows if r["variant"].startswith("human")]
    assert [row["value"] for row in authors] == [p["seq_rep_4"] for p in measured.reference]
    page = render_page(
        "Far", "Why?", report, {n: replace(p, draw=_blank) for n, p in pictures.items()}
    )
    assert "Share of repeated 4-grams by generated length" in page
    assert page.count("human continuation") > len(PROTOCOL.measures)
    assert "decoding: TopP(p=0.5, temperature=1.0)" in page
    body = re.sub(r"data:[^\"]*|<[^>]*>", "", page.split("<main>")[1])
    assert "context" not in body.split("What decoding keeps")[0]
    assert "perplexity" not in body
    console = Console(width=80, file=io.StringIO())
    print_table(report, console)
    assert re.search(rf"human[ \w]*–.*\b{human:.2f}", console.file.getvalue())


def test_decodings_stand_on_one_page_unless_they_are_of_one_variant(measured, experiment, corpus):
    other = replace(PROTOCOL, decoding=TopP(0.5))
    check_together(
        {"a": (experiment, corpus), "b": (replace(experiment, evaluation=other), corpus)}
    )
    with pytest.raises(ValueError, match=r"protocol.decoding is .*Temperature.*TopP"):
        summarise([_result("a", measured), _result("a", measured, other, seed=1)], {})
    longer = replace(experiment, evaluation=replace(PROTOCOL, lengths=(8, 24)))
    with pytest.raises(ValueError, match=r"protocol.lengths is \[8, 20\] for the one"):
        check_together({"a": (experiment, corpus), "b": (longer, corpus)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": 0}, "prompt must be at least 1, not 0"),
        ({"lengths": ()}, "lengths must be positive and increasing"),
        ({"lengths": (128, 64)}, r"lengths must be positive and increasing, not \(128, 64\)"),
        ({"lengths": (2, 64)}, "lengths must be at least 4, the tokens of a 4-gram"),
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"documents": 0}, "documents must be at least 1"),
        ({"samples": 2}, "Greedy draws nothing here, so 2 samples of a prompt would be the same"),
        ({"samples": 2, "decoding": TopP(0.9, temperature=0)}, "TopP draws nothing here"),
    ],
)
def test_bad_protocols_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Repetition(**fields)


def test_what_cannot_be_written_is_refused_before_long_work(experiment, corpus):
    def check(**changed):
        validate("it", replace(experiment, **changed), {}, corpus)

    check()
    learned = replace(experiment.model, positions=Learned(28), vocab=257)
    train = replace(experiment.train, length=16)
    with pytest.raises(ValueError, match="for texts of 28 tokens, and there are some of 29"):
        check(model=learned, train=train)
    check(model=replace(learned, positions=Learned(29)), train=train)
    with pytest.raises(ValueError, match="no document of split 'test' has 100008 tokens"):
        check(evaluation=replace(PROTOCOL, lengths=(100_000,)))
    with pytest.raises(ValueError, match="MQAR is measured by Recall, not by Repetition"):
        MQAR().load().check(512, PROTOCOL)


def test_a_sequence_that_is_cut_is_not_written(experiment, corpus):
    cut = replace(
        experiment, mesh=Mesh(seq=2), evaluation=replace(PROTOCOL, decoding=Greedy(), samples=1)
    )
    with pytest.raises(ValueError, match=r"a token at a time, which cannot be cut .* mesh.seq=2"):
        validate("it", cut, {}, corpus)
    assert SameTargets().writes is None


def test_a_judge_and_a_guard(experiment, params, corpus):
    """The judge is another model: its nats of each token, after prompt and text before it."""
    judge = jax.jit(experiment.model.init)(jax.random.key(5))
    guard = RepetitionGuard(n=2, window=8, share=0.3, act=Resample(Temperature(2.0), 4))
    protocol = replace(PROTOCOL, judge="other", guard=guard, samples=1, decoding=Greedy())
    asked = replace(experiment, evaluation=protocol)
    found, _ = evaluate(asked, params, corpus, "it", judge=(experiment.model, judge))
    prompts = [np.array([256, *t.ids[:8]], np.int32) for t in corpus.targets(protocol).texts]
    generator = Generator(experiment.model, params, protocol.decoding, tokenizer=corpus.tokenizer)
    written = generator.write(prompts, 20, protocol.seed, guard)
    assert any(text.loops for text in written)
    assert found.reference is not None
    for point, cut in zip(found.contexts, protocol.lengths, strict=True):
        nats, tokens = 0.0, 0
        for prompt, text in zip(prompts, written, strict=True):
            whole = np.concatenate([prompt, text.tokens[:cut]])
            padded = np.pad(whole, (0, 29 - len(whole)))[None]
            logits = experiment.model(judge, Batch(padded)).x[0]
            each = -jax.nn.log_softmax(logits)[np.arange(28), padded[0, 1:]]
            nats += float(each[8 : len(whole) - 1].sum())
            tokens += len(whole) - 9
        assert point["tokens"] == tokens
        assert point["judged"] == pytest.approx(np.exp(nats / tokens), rel=1e-5)
    with pytest.raises(ValueError, match="no variant 'other'"):
        check_links({"it": asked})
    moved = replace(experiment, data=replace(experiment.data, tokenizer=BPE(300)))
    with pytest.raises(ValueError, match="other has other data"):
        check_links({"it": asked, "other": moved})


def test_rep_is_counted_in_what_was_read_before_each_target(experiment, corpus):
    protocol = TokenRepetition(contexts=(16, 64), span=40, documents=3, last=12)
    letters = jnp.where((jnp.arange(257) >= 97) & (jnp.arange(257) <= 122), 20.0, 1.0)
    params = jax.tree.map(  # predicts letters, which the texts are of
        lambda a: a * letters[:, None] if a.shape[:1] == (257,) else a,
        jax.jit(experiment.model.init)(jax.random.key(1)),
    )
    asked = replace(experiment, evaluation=protocol)
    points = evaluate(asked, params, corpus, "it", Console(quiet=True))[0].contexts
    forward = jax.jit(lambda tokens: experiment.model(params, Batch(tokens)).x[0].argmax(-1))
    counts = {c: np.zeros(4) for c in protocol.contexts}
    for text in corpus.targets(protocol).texts:
        for excerpt in protocol.excerpts(text, 256):
            (score,), tokens = excerpt.scores, excerpt.tokens.tolist()
            likeliest = forward(np.pad(excerpt.tokens, (0, 128 - len(tokens)))[None]).tolist()
            for t in range(score.first, score.last):
                before, guess = tokens[max(1, t - 12) : t], likeliest[t - 1]
                rep = guess in before
                own = tokens[t] in before
                counts[score.context] += [rep and guess != tokens[t], rep, own, 1]
    for point in points:
        *shares, tokens = counts[point["context"]]
        assert point["tokens"] == tokens
        found = [point[m.key] for m in protocol.measures]
        assert found == pytest.approx([share / tokens for share in shares], rel=1e-12)
        assert 0 < found[0] < found[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"last": 0}, "last must be at least 1"),
        ({"last": 49}, "a context of 64 tokens holds at least 48 before each target"),
        ({"unit": "bytes"}, "contexts count tokens, as `last` does"),
    ],
)
def test_a_bad_look_back_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenRepetition(**fields)
