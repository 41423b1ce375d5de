"""Classes of a user's own, tried in miniature: right ones pass, and each mistake is named."""

import re
import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from rich.console import Console

from lcx.block import Block
from lcx.checking import Finding, check_own, findings, own
from lcx.checking.laws import LAWS, broken
from lcx.checking.own import parts
from lcx.checking.schemes import (
    NORM_LAWS,
    SCHEME_LAWS,
    SPARSITY_LAWS,
    NormTrial,
    SchemeTrial,
    SparsityTrial,
)
from lcx.checking.trial import Trial, miniature
from lcx.command import cli
from lcx.command.check import tables_of
from lcx.cost import cost_of
from lcx.data import Task
from lcx.dense import linear
from lcx.experiment import Experiment
from lcx.experiment_file import load
from lcx.layers import CHANNELS, LayerNorm, RMSNorm, SwiGLU
from lcx.losses import Loss
from lcx.mixers import MIXERS, RetNet, SoftmaxAttention
from lcx.model import LM
from lcx.optim import Optimizer
from lcx.parallel.mesh import Mesh
from lcx.positions import PositionScheme, RoPE, Scaling
from lcx.protocols import EvaluationProtocol
from lcx.sparsity import Full, Sparsity, Window
from lcx.spec import SpecError, check
from lcx.types import Batch, Begins, Dims, Output, Sublayer


@dataclass(frozen=True)
class Mean:
    """A mixer without a state: what `mix` makes of values."""

    def init(self, dims, rngs):
        square = (dims.model, dims.model, ("embed", None), rngs)
        return nnx.Dict(value=linear(dims, *square), out=linear(dims, *square))

    def init_state(self, dims, batch, capacity):
        return ()

    def __call__(self, params, x, ctx, state=None):
        return Output(params.out(self.mix(params.value(x), ctx)), state)

    def mix(self, v, ctx):
        return jnp.cumsum(v, axis=1) / jnp.arange(1, v.shape[1] + 1)[:, None].astype(v.dtype)


@dataclass(frozen=True)
class LooksAhead(Mean):
    def mix(self, v, ctx):
        return jnp.roll(super().mix(v, ctx), -1, axis=1)


@dataclass(frozen=True)
class NoMask(Mean):
    def mix(self, v, ctx):
        weights = nnx.softmax(jnp.einsum("btd,bsd->bts", v, v), axis=-1)
        return jnp.einsum("bts,bsd->btd", weights, v)


@dataclass(frozen=True)
class MixesRows(Mean):
    def mix(self, v, ctx):
        return v + v.mean(axis=0)


@dataclass(frozen=True)
class Unused(Mean):
    def __call__(self, params, x, ctx, state=None):
        return Output(params.out(x), state)


@dataclass(frozen=True)
class TwiceAsWide(Mean):
    def __call__(self, params, x, ctx, state=None):
        return Output(jnp.concatenate([x, x], axis=-1), state)


@dataclass(frozen=True)
class NoOutput(Mean):
    def __call__(self, params, x, ctx, state=None):
        return params.out(x), state


@dataclass(frozen=True)
class Broken(Mean):
    def mix(self, v, ctx):
        return v @ v


@dataclass(frozen=True)
class MyRetNet(RetNet):
    """Right."""


@dataclass(frozen=True)
class Forgets(RetNet):
    def __call__(self, params, x, ctx, state=None):
        return Output(super().__call__(params, x, ctx, state).x, state)


@dataclass(frozen=True)
class WholeAlone(RetNet):
    def __call__(self, params, x, ctx, state=None):
        return super().__call__(params, x, ctx._replace(shards=None), state)


@dataclass(frozen=True)
class FromNothing(RetNet):
    def __call__(self, params, x, ctx, state=None):
        return super().__call__(params, x, ctx._replace(initial=None), state)


@dataclass(frozen=True)
class Misnamed(RetNet):
    @property
    def learned_state(self):
        return "matrix"


@dataclass(frozen=True)
class InFp32(RetNet):
    def __call__(self, params, x, ctx, state=None):
        out = super().__call__(params, x, ctx, state)
        return out._replace(x=out.x.astype(jnp.float32))


@dataclass(frozen=True)
class MyWindow(Window):
    """Right."""


@dataclass(frozen=True)
class BothWays(Full):
    """The future, too."""

    def __call__(self, asked):
        def turned(a):
            return jnp.flip(a, axis=1)

        q, k, v = map(turned, asked[:3])
        out, back = super().__call__(asked), super().__call__(asked._replace(q=q, k=k, v=v))
        return out._replace(o=out.o + turned(back.o))


@dataclass(frozen=True)
class Waves:
    """A scheme that adds a wave to queries and keys: right."""

    period: float = 100.0

    def check(self, width):
        pass

    def at(self, q, ctx):
        return ctx.positions

    def __call__(self, q, k, ctx):
        wave = jnp.sin(2 * jnp.pi * self.at(q, ctx) / self.period)[..., None, None]
        return q + wave.astype(q.dtype), k + wave.astype(k.dtype)

    def slopes(self, heads):
        return None

    def decay(self, width):
        return None


@dataclass(frozen=True)
class ByIndex(Waves):
    def at(self, q, ctx):
        return jnp.broadcast_to(jnp.arange(q.shape[1]), ctx.positions.shape)


@dataclass(frozen=True)
class OverTokens(RMSNorm):
    def init(self, dims, rngs):
        made = super().init(dims, rngs)
        return lambda x: made(x - x.mean(axis=1, keepdims=True))


def trial(sublayer, name: str | None = None) -> Trial:
    return Trial(name or type(sublayer).__name__, sublayer, Dims(32, layers=2, layer=1))


MISTAKES = [
    (LooksAhead(), "causal", "changing token 1 changes the output at position 0 (of 2 tokens)"),
    (NoMask(), "causal", "NoMask is not causal: changing token 1 changes the output at position 0"),
    (Mean(), "documents", "changing token 0 changes the output at position 1 (of 2 tokens, in two"),
    (Mean(), "pieces", "text in pieces of 1 and 1 tokens gives another output at position 1"),
    (MixesRows(), "rows", "changing row 0 changes the output of row 1 at position 0"),
    (Unused(), "gradients", "its parameter value.kernel gets no gradient, and no output depends"),
    (TwiceAsWide(), "shapes", "TwiceAsWide gave x of [2 80 64], expected [2 80 32]"),
    (NoOutput(), "shapes", "NoOutput gave a tuple, expected an Output(x, state)"),
    (Broken(), "shapes", "Broken raised TypeError as 'shapes' was tried"),
    (Forgets(), "pieces", "Forgets: pieces with a state are not the whole"),
    (WholeAlone(), "shards", "(mesh.seq=2) the output at position 2 is another (of 4 tokens)"),
    (FromNothing(), "begins", "does not read it as one that goes on: position 0 of a document"),
    (
        Misnamed(),
        "begins",
        "its `learned_state` is 'matrix', and its state, MatrixState, has no such",
    ),
    (InFp32(), "dtypes", "gave float32 under Policy(compute='bfloat16'), expected bfloat16"),
    (SoftmaxAttention(sparsity=BothWays()), "causal", "is not causal: changing token 1"),
]


@pytest.mark.parametrize(("mixer", "law", "said"), MISTAKES, ids=lambda v: type(v).__name__)
def test_a_mistake_is_named_by_its_smallest_case(mixer, law, said):
    assert said in (broken(law, LAWS[law], trial(mixer)) or "nothing")


RIGHT = (
    SoftmaxAttention(sparsity=MyWindow(7), position=Waves()),
    *(pytest.param(c(), marks=pytest.mark.slow) for c in MIXERS.values()),
)


@pytest.mark.parametrize("mixer", RIGHT, ids=lambda v: type(v).__name__)
def test_right_mixers_keep_all_laws(mixer):
    tried = trial(mixer)
    begins = isinstance(mixer, Begins)
    kept = {
        word: broken(word, law, tried) for word, law in LAWS.items() if begins or word != "begins"
    }
    assert kept == dict.fromkeys(kept)


def said_of(tried: Any, laws) -> str:
    return "; ".join(filter(None, (broken(word, law, tried) for word, law in laws.items())))


def test_schemes_sparsities_and_norms_have_laws_of_their_own():
    assert said_of(SchemeTrial("Waves", Waves(), 16, 80), SCHEME_LAWS) == ""
    wrong = said_of(SchemeTrial("ByIndex", ByIndex(), 16, 80), SCHEME_LAWS)
    assert "ByIndex does not go by ctx.positions: a token at position 0 is encoded" in wrong
    assert said_of(SparsityTrial("MyWindow", MyWindow(7), RoPE(), 80), SPARSITY_LAWS) == ""
    assert said_of(NormTrial("LayerNorm", LayerNorm(), 16), NORM_LAWS) == ""
    wrong = said_of(NormTrial("OverTokens", OverTokens(), 16), NORM_LAWS)
    assert "OverTokens mixes tokens: changing token 0 changes the output at position 1" in wrong


def variant(mixer, **more) -> Experiment:
    return Experiment(LM(width=32, pattern=(Block(mixer, SwiGLU(hidden=32)),)), **more)


def test_only_classes_that_are_not_lcx_s_are_tried_and_each_once():
    assert not parts({"a": variant(SoftmaxAttention()), "b": variant(RetNet())})
    mixed = {
        "a": variant(SoftmaxAttention(position=Waves())),
        "b": variant(SoftmaxAttention(position=Waves(50.0), heads=2)),
        "c": variant(SoftmaxAttention(position=Waves())),
    }
    places = [part.place for part in parts(mixed)]
    mixer = "model.pattern.0.mixer"
    assert places == [f"{mixer}.position", mixer] * 2
    assert [p.variant for p in parts(mixed, exactly=False)] == ["a", "a"]


def test_shards_are_asked_for_where_a_mesh_cuts_sequences(monkeypatch):
    monkeypatch.setattr(own, "LAWS", {"shards": LAWS["shards"]})
    alone, cut = variant(Mean()), variant(Mean(), mesh=Mesh(seq=2))
    (found,) = findings({"a": alone})
    assert found.laws["shards"]
    assert not found.broken
    check_own({"a": alone}, Console(quiet=True))
    with pytest.raises(ValueError, match=r"^b: model.pattern.0.mixer \(Mean\): on two shards"):
        check_own({"a": alone, "b": cut}, Console(quiet=True))


def test_the_file_of_the_page_on_experiments_keeps_all_laws(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "experiments.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "own.py").write_text(block)
    found = list(findings(load(tmp_path / "own.py").experiments))
    names = ["MovingAverage", "LogRotation", "SoftmaxAttention with LogRotation"]
    assert [finding.name for finding in found] == names
    assert [said for finding in found for said in finding.laws.values() if said] == []


def test_a_miniature_is_as_narrow_as_its_class_allows():
    wide = LM(width=768, pattern=(Block(),))
    assert miniature("", SoftmaxAttention(heads=12), wide, 80).dims.model == 96
    assert miniature("", SoftmaxAttention(heads=4), wide, 80).dims.model == 64
    assert miniature("", SoftmaxAttention(), LM(width=48), 80).dims.model == 48


@dataclass(frozen=True)
class Stateless:
    def init(self, dims, rngs): ...

    def __call__(self, params, x, ctx, state=None): ...


@dataclass(frozen=True)
class OtherOrder(Mean):
    def init_state(self, dims): ...


@pytest.mark.parametrize(
    ("value", "protocol", "said"),
    [
        (Stateless(), Sublayer, "Stateless has no init_state(dims, batch, capacity)"),
        (
            OtherOrder(),
            Sublayer | None,
            "OtherOrder.init_state takes (dims), expected init_state(dims, batch, capacity)",
        ),
        (LM(), Sublayer, "LM.init takes (key), expected init(dims, rngs)"),
        (
            Stateless(),
            PositionScheme,
            "expected PositionScheme, got Stateless(): Stateless has no check(width) and no",
        ),
        (Stateless(), Sparsity, "no keys_seen(length)"),
        (Stateless(), Scaling | None, "Stateless has no inv_freq(theta, width, length)"),
        (Stateless(), EvaluationProtocol, "Stateless has no "),
        (Stateless(), Optimizer, "Stateless has no "),
        (Stateless(), Loss, "Stateless has no "),
        (Stateless(), Task, "no load()"),
    ],
)
def test_what_a_class_lacks_is_named_by_method(value, protocol, said):
    holder = make_dataclass("Holder", [("part", protocol)], frozen=True)
    with pytest.raises(SpecError, match=r"^part: ") as error:
        check(holder(value))
    assert said in str(error.value)


def test_every_entry_of_the_tables_has_what_its_protocol_asks_for():
    for entry in (*MIXERS.values(), *CHANNELS.values()):
        check(make_dataclass("Holder", [("part", Sublayer)], frozen=True)(entry()))
    check(Experiment())


@pytest.mark.parametrize(
    ("mixer", "said"),
    [
        (TwiceAsWide(), "TwiceAsWide gave x of [1, 4, 64], expected [1, 4, 32]"),
        (NoOutput(), "NoOutput gave a tuple, expected an Output"),
    ],
)
def test_a_block_says_which_sublayer_gave_what(mixer, said):
    model = variant(mixer).model
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"^Block: ") as error:
        jax.eval_shape(model, params, Batch(jnp.zeros((1, 4), jnp.int32)))
    assert said in str(error.value)


def test_a_mixer_without_a_formula_is_named_in_its_cost():
    assert cost_of(variant(Mean()).model, 64, [64])["uncounted"] == ["Mean"]
    assert cost_of(variant(RetNet()).model, 64, [64])["uncounted"] == []


OWN = '''
"""Is it causal?"""
from lcx.layers import SwiGLU
from tests.test_checking import LooksAhead, variant
from dataclasses import dataclass, replace
from lcx.block import Block
from lcx.model import LM

@dataclass(frozen=True)
class MySwiGLU(SwiGLU):
    pass

def experiments():
    wrong, right = variant(LooksAhead()), LM(width=32, pattern=(Block(channel=MySwiGLU()),))
    return {"right": replace(wrong, model=right), "wrong": wrong}
'''


def test_the_command_prints_a_table_and_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    file = tmp_path / "own.py"
    file.write_text(OWN)
    assert run("check", file) == 1
    table, _, said = capsys.readouterr().out.partition("causal: ")
    lines = dict(line.split(maxsplit=1) for line in table.splitlines() if line.strip())
    assert lines["shapes"].split() == ["✓", "✓"]
    assert lines["causal"].split() == ["✓", "✗"]
    assert set(LAWS) < set(lines)
    said = " ".join(said.split())
    assert "wrong: model.pattern.0.mixer (LooksAhead) is not causal: changing token 1" in said
    assert run("check", Path(__file__).parent / "tiny.py") == 0
    assert "every part of its models is lcx's own" in capsys.readouterr().out


def test_many_parts_stand_below_one_another(capsys):
    """Each name in one line."""
    laws = dict.fromkeys(LAWS)
    names = [f"SoftmaxAttention with Window{n}" for n in range(3)] + [f"Mixer{n}" for n in range(9)]
    found = [Finding("a", "model", name, laws, frozenset(laws)) for name in names]
    for table in tables_of(found, 80):
        Console(width=80).print(table)
    lines = capsys.readouterr().out.splitlines()
    heads = [line.strip() for line in lines if "Mixer" in line or "with" in line]
    assert [line.split("  ") for line in heads] == [names[:2], names[2:7], names[7:]]
    assert sum("causal" in line for line in lines) == 3


def run(*arguments) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lcx", *map(str, arguments)])
        patch.setenv("TINY_TEXTS", "*.txt")
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0
