"""Evaluation: each protocol's windows by its definition, and streaming equal to one whole pass."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lcx import logits as logits_of
from lcx import streaming
from lcx.block import Block
from lcx.evaluation import evaluate as evaluation
from lcx.mixers import RWKV4, SoftmaxAttention
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.parallel.preemption import Preempted, Preemption
from lcx.protocols import PROTOCOLS, ByPosition, Recall, Repetition, SameTargets, Sliding, Text
from lcx.protocols.base import check_measures
from lcx.protocols.measures import PERPLEXITY, token_scores
from lcx.types import Batch
from tests.tiny import tiny

BOS = 256
DOCUMENT = np.arange(1000, dtype=np.int32)  # token i stands at place i


def text(length: int = 1000, size: int = 1, spans=()) -> Text:
    """A document of tokens that all have the same number of bytes."""
    return Text("it", DOCUMENT[:length], size * DOCUMENT[:length], spans)


def scored(protocol, of: Text | None = None) -> dict[int, list[tuple[int, int]]]:
    """{context: [(token, how many tokens of text the model saw before it)]}, in order."""
    found: dict[int, list[tuple[int, int]]] = {}
    for window in protocol.excerpts(of or text(), BOS):
        assert window.tokens[0] == BOS
        np.testing.assert_array_equal(np.diff(window.tokens[1:]), 1)  # one piece of the text
        for score in window.scores:
            pairs = [(int(window.tokens[i]), i - 1) for i in range(score.first, score.last)]
            found.setdefault(score.context, []).extend(pairs)
    return found


def test_same_targets_varies_only_the_context():
    found = scored(SameTargets((1, 4, 64, 500)), text(spans=((600, 640), (900, 990))))
    for c, pairs in found.items():
        assert [token for token, _ in pairs] == [*range(600, 640), *range(900, 990)]
        seen = [before + 1 for _, before in pairs]  # and the mark
        assert max(seen) == c
        assert min(seen) > c - max(1, c / 4)
    assert [before for _, before in found[4]][:2] == [3, 3]
    assert [before for _, before in found[64]][:18] == [*range(48, 64), 48, 49]


def test_a_span_is_of_bytes_whatever_the_tokens_are():
    found = scored(SameTargets((8,)), text(size=3, spans=((601, 640),)))
    assert [token for token, _ in found[8]] == list(range(200, 214))  # bytes 600 to 642
    in_bytes = scored(SameTargets((30, 90), unit="bytes"), text(size=3, spans=((600, 640),)))
    for c, pairs in in_bytes.items():
        assert [token for token, _ in pairs] == list(range(200, 214))
        assert max(3 * before for _, before in pairs) == c
        assert min(3 * before for _, before in pairs) >= 0.75 * c - 3


def test_sliding_scores_each_token_once_after_almost_c_tokens():
    found = scored(Sliding(contexts=(64, 256), stride=48, span=900))
    for c, pairs in found.items():
        assert [token for token, _ in pairs] == list(range(900))
        for token, seen in pairs:
            assert min(token, c - 48) <= seen < c


def test_by_position_averages_the_stretch_before_each_context():
    found = scored(ByPosition(contexts=(10, 100, 1000)))
    assert found[10] == [(i, i) for i in range(10)]
    assert found[100] == [(i, i) for i in range(10, 100)]
    assert found[1000] == [(i, i) for i in range(100, 1000)]


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (SameTargets, {"contexts": ()}, "positive and increasing"),
        (SameTargets, {"contexts": (128, 64)}, "positive and increasing"),
        (SameTargets, {"span": 0}, "span must be at least 1"),
        (SameTargets, {"spans": 0}, "spans must be at least 1"),
        (SameTargets, {"contexts": (64,), "before": 63}, "cannot hold the longest context, 64"),
        (Sliding, {"contexts": (64,), "stride": 65}, "stride must be in"),
        (Sliding, {"contexts": (64,), "stride": 8, "span": 10}, "shorter than the longest"),
        (ByPosition, {"documents": 0}, "documents must be at least 1"),
    ],
)
def test_bad_protocols_are_refused(cls, fields, message):
    with pytest.raises(ValueError, match=message):
        cls(**fields)


def test_every_protocol_keeps_its_documents_long_enough():
    # documents of the one are pairs, half of a window; the other has text written
    for cls in set(PROTOCOLS.values()) - {Recall, Repetition}:
        protocol = cls(contexts=(64, 200))
        spans = ((protocol.length - 1, protocol.length),)
        windows = list(protocol.excerpts(text(protocol.length, spans=spans), BOS))
        assert max(len(w.tokens) for w in windows) <= protocol.length + 1
        last: dict[int, int] = {}
        for s in (s for w in windows for s in w.scores):
            last[s.context] = max(last.get(s.context, 0), s.last - 1)
        assert last == {64: 64, 200: 200}


@pytest.fixture(scope="module")
def corpus(texts):
    return tiny(f"{texts}/*.txt").data.load()


@pytest.mark.parametrize("mixer", [SoftmaxAttention(heads=2), RWKV4()], ids=["softmax", "rwkv4"])
@pytest.mark.parametrize(
    "protocol",
    [
        SameTargets(contexts=(16, 64, 200), span=40, documents=3),
        Sliding(contexts=(32, 96), stride=16, documents=2),
        ByPosition(contexts=(50, 250), documents=3),
    ],
    ids=lambda p: type(p).__name__,
)
def test_streaming_equals_one_pass_per_window(mixer, protocol, corpus, texts, monkeypatch):
    model = LM(width=16, pattern=(Block(mixer),), repeats=2)
    experiment = replace(tiny(f"{texts}/*.txt"), model=model, evaluation=protocol)
    params = jax.jit(model.init)(jax.random.key(0))
    params = jax.tree.map(lambda a: a + 0.3 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), params)
    monkeypatch.setattr(streaming, "PIECE", 32)  # many pieces, and some that nothing scores
    monkeypatch.setattr(streaming, "ROWS", 2)
    measured, _ = evaluation.evaluate(experiment, params, corpus, "it", Console(quiet=True))

    texts = corpus.targets(protocol).texts
    forward = jax.jit(lambda tokens: model(params, Batch(tokens)).x)
    for score in measured.contexts:
        assert [d["name"] for d in score["documents"]] == [of.name for of in texts]
        assert score["reach"] == score["context"]
        for of, got in zip(texts, score["documents"], strict=True):
            assert got["spans"] == of.parts
            total, tokens, hits = 0.0, 0, 0
            for window in protocol.excerpts(of, BOS):
                padded = np.zeros(300, np.int32)
                padded[: len(window.tokens)] = window.tokens
                log_p = np.asarray(jax.nn.log_softmax(forward(padded[None])[0]), np.float64)
                for s in window.scores:
                    if s.context == score["context"]:
                        where = np.arange(s.first, s.last)
                        total -= log_p[where - 1, padded[where]].sum()
                        hits += int((log_p[where - 1].argmax(-1) == padded[where]).sum())
                        tokens += len(where)
            assert got["hits"] == hits
            assert (got["tokens"], got["bytes"]) == (tokens, tokens)
            assert got["nll"] == pytest.approx(total, rel=1e-5)


def test_short_windows_are_read_side_by_side_in_one_piece_each():
    model = LM(width=16, pattern=(Block(SoftmaxAttention(heads=2)),), repeats=2)
    streamer = streaming.Streamer(model, jax.jit(model.init)(jax.random.key(0)), Mesh())
    sizes = [(streamer.piece(n), streamer.rows(streamer.piece(n), n)) for n in (1, 17, 64, 9000)]
    assert sizes == [(32, 128), (32, 128), (128, 32), (512, 8)]


def test_large_states_are_streamed_in_fewer_rows(monkeypatch):
    model = LM(width=16, pattern=(Block(SoftmaxAttention(heads=2)),), repeats=2)
    streamer = streaming.Streamer(model, jax.jit(model.init)(jax.random.key(0)), Mesh())
    assert streamer.rows(512, 1024) == streaming.ROWS
    monkeypatch.setattr(streaming, "STATE_BYTES", 3 * 2 * 1024 * (2 * 16 + 2) * 4 + 100)
    assert streamer.rows(512, 1024) == 3
    monkeypatch.setattr(streaming, "STATE_BYTES", 1)
    assert streamer.rows(512, 1024) == 1


def test_large_vocabularies_are_scored_in_pieces(monkeypatch):
    model = LM(vocab=50, width=8, repeats=1)
    params = jax.jit(model.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 9, 8))
    targets = jax.random.randint(jax.random.key(2), (2, 9), 0, 50)

    def scores(targets):
        return logits_of.over_logits(model, params, token_scores, x, targets)

    whole = scores(targets)
    monkeypatch.setattr(logits_of, "LOGITS", 2 * 50 * 2)
    pieces = scores(targets)
    np.testing.assert_allclose(pieces.nll, whole.nll, rtol=1e-6)
    np.testing.assert_array_equal(pieces.hit, whole.hit)
    best = np.asarray(model.logits(params, x).argmax(-1))
    np.testing.assert_array_equal(whole.hit, best == np.asarray(targets))
    assert scores(jnp.asarray(best)).hit.all()


def test_a_measure_of_what_is_not_scored_is_refused_before_any_work():
    class Own(SameTargets):
        @property
        def measures(self):
            return (replace(PERPLEXITY, name="surprise", sums="bits"),)

    check_measures(SameTargets())
    with pytest.raises(ValueError, match="averages 'bits', but `scores` gives 'hits', 'nll'"):
        check_measures(Own())


class After(Preemption):
    """A request to end that comes after so many excerpts."""

    def __init__(self, excerpts: int):
        super().__init__()
        self.left = excerpts

    def reached(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_an_evaluation_that_is_ended_goes_on_where_it_was(corpus, texts, tmp_path):
    experiment = tiny(f"{texts}/*.txt")
    params = jax.jit(experiment.model.init)(jax.random.key(0))
    draft, quiet = tmp_path / "eval" / "it.draft.jsonl", Console(quiet=True)

    def scores(preemption: Preemption | None) -> list:
        asked = (experiment, params, corpus, "it", quiet, preemption, draft)
        return evaluation.evaluate(*asked)[0].contexts

    with pytest.raises(Preempted, match=r"it: 5 of \d+ excerpts are evaluated"):
        scores(After(5))
    with draft.open("a") as file:
        file.write('{"job": 1, "docu')  # and it was killed while it wrote
    with pytest.raises(Preempted, match=r"it: 7 of \d+ excerpts"):
        scores(After(2))
    parts = scores(None)
    draft.unlink()
    whole = scores(None)
    for a, b in zip(parts, whole, strict=True):
        assert a["documents"] == b["documents"]
        assert a["reach"] == b["reach"]
