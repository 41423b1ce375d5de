import importlib
import json
import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import pytest
from beartype.vale import Is
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import install_import_hook

from lcx.spec import (
    SpecError,
    check,
    decode,
    describe,
    differences,
    encode,
    override,
    parse,
    types_of,
)


@runtime_checkable
class Mixer(Protocol):
    def mix(self) -> int: ...


@dataclass(frozen=True)
class Linear:
    factor: float


@dataclass(frozen=True)
class NTK:
    factor: float = 2.0
    ramp: tuple[float, float] = (1.0, 32.0)


@dataclass(frozen=True)
class RoPE:
    theta: float = 10000  # an int where a float is wanted, as people write it
    scaling: Linear | NTK | None = None

    def __post_init__(self) -> None:
        if self.theta <= 0:
            raise ValueError(f"theta must be positive, got {self.theta}")


@dataclass(frozen=True)
class NoPosition:
    pass


@dataclass(frozen=True)
class Softmax:
    heads: int = 8
    kv_heads: int | None = None
    position: RoPE | NoPosition = RoPE()
    window: int | None = None

    def __post_init__(self) -> None:
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is no multiple of kv_heads={self.kv_heads}")

    def mix(self) -> int:
        return self.heads


@dataclass(frozen=True)
class Recurrent:
    heads: int = 4
    decay: float | Literal["learned"] = "learned"

    def mix(self) -> int:
        return self.heads


@dataclass(frozen=True)
class Block:
    mixer: Mixer
    bias: bool = False


@dataclass(frozen=True)
class LM:
    pattern: tuple[Block, ...] = (Block(Softmax()),)
    remat: Literal["none", "block"] = "none"
    width: int = 64


@dataclass(frozen=True)
class Run:
    name: str
    model: LM = LM()
    lengths: tuple[int, ...] | None = None
    rates: tuple[float, ...] | float = 1e-3
    tags: tuple[str, ...] = ()
    steps: Annotated[int, Is[lambda n: n > 0]] = 400
    note: str | None = field(default=None, kw_only=True)
    seeds: tuple[int, ...] = field(default_factory=lambda: (0, 1))
    total: int = field(init=False, default=0)


TYPES = {c.__name__: c for c in (Linear, NTK, RoPE, NoPosition, Softmax, Recurrent, Block, LM, Run)}
RUN = Run("a", LM((Block(Recurrent(decay=0.5)), Block(Softmax(position=RoPE(scaling=NTK()))))))

quick = settings(max_examples=50, deadline=None)
ints = st.integers(-(2**70), 2**70)
floats = st.floats(allow_nan=False)
scalings = st.none() | st.builds(Linear, floats) | st.builds(NTK, floats, st.tuples(floats, floats))
ropes = st.builds(RoPE, floats.filter(lambda x: x > 0), scalings)
softmaxes = st.builds(Softmax, heads=ints, position=ropes | st.just(NoPosition()))
recurrents = st.builds(Recurrent, ints, floats | st.just("learned"))
blocks = st.builds(Block, softmaxes | recurrents, st.booleans())
models = st.builds(
    LM, st.lists(blocks, max_size=3).map(tuple), st.sampled_from(["none", "block"]), ints
)
runs = st.builds(
    Run,
    name=st.text(),
    model=models,
    lengths=st.none() | st.lists(ints, max_size=3).map(tuple),
    rates=floats | st.lists(floats, max_size=3).map(tuple),
    tags=st.lists(st.text(), max_size=2).map(tuple),
    steps=st.integers(1, 2**70),
    note=st.none() | st.text(),
    seeds=st.lists(ints, max_size=3).map(tuple),
)


def fails(call, *args) -> str:
    with pytest.raises(SpecError) as caught:
        call(*args)
    return str(caught.value)


class TestRoundTrips:
    @quick
    @given(runs)
    def test_json(self, run):
        text = json.dumps(encode(run))
        loaded = decode(json.loads(text), TYPES)
        assert loaded == run
        assert json.dumps(encode(loaded)) == text

    @quick
    @given(runs)
    def test_expression(self, run):
        assert parse(describe(run), TYPES) == run

    @quick
    @given(runs, runs)
    def test_differences_are_empty_exactly_when_equal(self, a, b):
        assert differences(a, a) == []
        assert (differences(a, b) == []) == (a == b)

    @quick
    @given(runs)
    def test_what_was_built_well_passes_the_check(self, run):
        check(run)

    @quick
    @given(runs, models)
    def test_a_described_value_can_be_assigned(self, run, model):
        changed = override(run, f"model={describe(model)}", TYPES)
        assert changed == replace(run, model=model)

    @quick
    @given(st.text())
    def test_any_text_parses_or_is_refused(self, text):
        try:
            value = parse(text, TYPES)
        except SpecError:
            return
        assert isinstance(value, None | bool | int | float | str | tuple)


class TestJSON:
    def test_form(self):
        assert encode(RoPE()) == {"type": "RoPE", "theta": 10000.0, "scaling": None}
        assert json.dumps(encode(NTK(ramp=(1, 2.5)))) == (
            '{"type": "NTK", "factor": 2.0, "ramp": [1.0, 2.5]}'
        )
        assert "total" not in encode(RUN)

    def test_ints_become_floats_where_a_float_is_wanted(self):
        rope = decode({"type": "RoPE", "theta": 500}, TYPES)
        assert type(rope.theta) is float
        assert rope == RoPE(500.0)

    def test_tuples_of_either_kind(self):
        @dataclass(frozen=True)
        class Either:
            sizes: tuple[int, ...] | tuple[float, float] = ()

        types = {"Either": Either}
        assert repr(parse("Either((1, 2))", types).sizes) == "(1, 2)"
        assert repr(parse("Either((1, 2.5))", types).sizes) == "(1.0, 2.5)"
        assert fails(parse, "Either((1, 2.5, 3))", types).startswith("sizes.1: expected int")
        assert fails(parse, "Either((1, 'a'))", types).startswith(
            "sizes: expected tuple[int, ...] | tuple[float, float], got (1, 'a') (tuple)"
        )

    def test_infinity(self):
        assert decode(json.loads(json.dumps(encode(Linear(-math.inf)))), TYPES).factor == -math.inf

    def test_absent_fields_take_their_defaults(self):
        assert decode({"type": "Softmax", "heads": 2}, TYPES) == Softmax(heads=2)

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            (("model", "pattern", 1, "mixer", "head"), 4, "model.pattern.1.mixer: unknown field "
             "'head' of Softmax; did you mean 'heads'? It has: heads, kv_heads, position, window"),
            (("model", "zzz"), 1, "model: unknown field 'zzz' of LM. It has: pattern, remat"),
            (("model", "pattern", 0, "mixer", "type"), "recurent",
             "model.pattern.0.mixer: unknown type 'recurent'; did you mean 'Recurrent'?"),
            (("model", "width"), True, "model.width: expected int, got True (bool)"),
            (("model", "pattern", 0), [3], "model.pattern.0: expected Block, got (3,) (tuple)"),
            (("seeds", ), [1, 2.5], "seeds.1: expected int, got 2.5 (float)"),
            (("model", ), {"width": 3}, "model: expected an object with a \"type\", got {'width'"),
            (("model", "pattern", 1, "mixer", "position", "theta"), -1,
             "model.pattern.1.mixer.position: theta must be positive, got -1.0"),
        ],
    )  # fmt: skip
    def test_errors_carry_the_path(self, place, value, message):
        data = encode(RUN)
        *way, last = place
        node = data
        for step in way:
            node = node[step]
        node[last] = value
        assert fails(decode, data, TYPES).startswith(message)

    def test_missing_field(self):
        message = fails(decode, {"type": "Block", "bias": True}, TYPES, "model.pattern.0")
        assert message == "model.pattern.0: Block needs mixer"

    def test_only_what_loads_is_written(self):
        assert fails(encode, LM(width="wide")) == "width: expected int, got 'wide' (str)"
        assert fails(encode, {"a": 1}).endswith("(dict) cannot be written as JSON")

        @dataclass(frozen=True)
        class Odd:
            type: str = "x"

        with pytest.raises(TypeError, match="'type' cannot name a field"):
            encode(Odd())


class TestCheck:
    def test_accepts_ints_for_floats(self):
        check(Run("a", rates=1, model=LM((Block(Softmax(position=RoPE(scaling=Linear(8)))),))))

    @pytest.mark.parametrize(
        ("run", "message"),
        [
            (replace(RUN, steps="abc"), "steps: expected Annotated[int, "),
            (replace(RUN, steps=0), "steps: expected Annotated[int, "),
            (Run("a", LM(width="abc")), "model.width: expected int, got 'abc' (str)"),
            (Run("a", LM(width=True)), "model.width: expected int, got True (bool)"),
            (Run("a", lengths=(1, True)), "lengths.1: expected int, got True (bool)"),
            (Run("a", rates=True), "rates: expected tuple[float, ...] | float, got True (bool)"),
            (Run("a", rates=math.nan), "rates: nan is not a setting"),
            (Run("a", LM(remat="blok")), "model.remat: expected Literal['none', 'block'], got"),
            (Run("a", LM((Block(RoPE()),))), "model.pattern.0.mixer: expected Mixer, got RoPE()"),
            (Run("a", LM((Block(Softmax),))),
             "model.pattern.0.mixer: got the class Softmax; write Softmax()"),
            (Run("a", LM(Block(Softmax()))), "model.pattern: expected tuple[Block, ...], got "
             "Block(mixer=Softmax()); a tuple of one is written (x,)"),
            (Run("a", LM([Block(Softmax())])), "model.pattern: expected tuple[Block, ...], got ["),
            (Run("a", LM((Block(Softmax(position=RoPE(scaling=NTK(ramp=(1.0,))))),))),
             "model.pattern.0.mixer.position.scaling.ramp: expected tuple[float, float], got"),
        ],
    )  # fmt: skip
    def test_errors_carry_the_path(self, run, message):
        assert fails(check, run).startswith(message)

    def test_every_item_of_a_tuple_is_looked_at(self):
        for place in range(20):
            tags = ("a",) * place + (3,) + ("b",) * 20
            assert fails(check, Run("a", tags=tags)) == f"tags.{place}: expected str, got 3 (int)"


class TestOverride:
    @pytest.mark.parametrize(
        ("assignment", "changed"),
        [
            ("model.pattern.0.mixer.heads=8", lambda r: r.model.pattern[0].mixer.heads == 8),
            ("model.pattern.1.mixer = Recurrent()", lambda r: r.model.pattern[1].mixer.heads == 4),
            ("model.remat=block", lambda r: r.model.remat == "block"),
            ("model.remat='block'", lambda r: r.model.remat == "block"),
            ("name=RoPE", lambda r: r.name == "RoPE"),
            ("name=/data/a b=c.txt", lambda r: r.name == "/data/a b=c.txt"),
            ("name=400", lambda r: r.name == "400"),
            ("name=", lambda r: r.name == ""),
            ("note=None", lambda r: r.note is None),
            ("note='None'", lambda r: r.note == "None"),
            ("tags=('a',)", lambda r: r.tags == ("a",)),
            ("steps=10_000", lambda r: r.steps == 10_000),
            ("lengths=[2**10, 8*1024]", lambda r: r.lengths == (1024, 8192)),
            ("lengths=()", lambda r: r.lengths == ()),
            ("seeds.1=-3", lambda r: r.seeds == (0, -3)),
            ("rates=(1, 1e-3)", lambda r: [type(x) for x in r.rates] == [float, float]),
            ("rates=1", lambda r: type(r.rates) is float),
            ("model.pattern.0.mixer.decay=learned",
             lambda r: r.model.pattern[0].mixer.decay == "learned"),
            ("model.pattern.1.bias=True", lambda r: r.model.pattern[1].bias is True),
        ],
    )  # fmt: skip
    def test_changes_one_place(self, assignment, changed):
        result = override(RUN, assignment, TYPES)
        assert changed(result)
        path = assignment.partition("=")[0].strip()
        assert all(line.startswith(path) for line in differences(RUN, result))

    def test_a_bare_string_inside_a_tuple(self):
        assert override(Run("a", tags=("x", "y")), "tags.1=z", TYPES).tags == ("x", "z")

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("model.widht=8", "model: unknown field 'widht' of LM; did you mean 'width'? It has: "
             "pattern, remat, width"),
            ("model.pattern.2.bias=True", "model.pattern: no index '2' in a tuple of length 2"),
            ("model.pattern.-1.bias=True", "model.pattern: no index '-1' in a tuple of length 2"),
            ("model.pattern.mixer=1", "model.pattern: no index 'mixer' in a tuple of length 2"),
            ("model.width.x=8", "model.width: holds 64 (int), neither a spec nor a tuple: it has no"
             " 'x'"),
            ("lengths.0=8", "lengths: holds None (NoneType), neither a spec nor a tuple"),
            ("total=8", "unknown field 'total' of Run."),
            ("model.width=abc", "model.width: expected int, got 'abc' (str)"),
            ("model.width='8'", "model.width: expected int, got '8' (str)"),
            ("model.width=8.0", "model.width: expected int, got 8.0 (float)"),
            ("model.width=None", "model.width: expected int, got None (NoneType)"),
            ("model.remat=blok", "model.remat: expected Literal['none', 'block'], got 'blok' (str);"
             " did you mean 'block'?"),
            ("model.pattern.0.bias=true", "model.pattern.0.bias: expected bool, got 'true' (str); "
             "did you mean 'True'?"),
            ("model.pattern.0.mixer=Softmax",
             "model.pattern.0.mixer: Softmax is a class; write Softmax()"),
            ("model.pattern.0.mixer=softmx", "model.pattern.0.mixer: expected Mixer, got 'softmx' "
             "(str); did you mean 'Softmax'?"),
            ("model.pattern.0.mixer=Softmx()", "model.pattern.0.mixer: unknown type 'Softmx'; did "
             "you mean 'Softmax'? Known: Linear, NTK"),
            ("model.pattern.0.mixer=Softmax(head=2)",
             "model.pattern.0.mixer: unknown field 'head' of Softmax; did you mean 'heads'?"),
            ("model.pattern.0.mixer=RoPE()", "model.pattern.0.mixer: expected Mixer, got RoPE()"),
            ("model.pattern.0=3", "model.pattern.0: expected Block, got 3 (int)"),
            ("model.pattern=(Block(Recurrent()))", "model.pattern: expected tuple[Block, ...], got "
             "Block(mixer=Recurrent()); a tuple of one is written (x,)"),
            ("model.pattern.1.mixer.kv_heads=3",
             "model.pattern.1.mixer: heads=8 is no multiple of kv_heads=3"),
            ("model.pattern.1.mixer=Softmax(position=RoPE(theta=-1))",
             "model.pattern.1.mixer.position: theta must be positive, got -1.0"),
            ("name='a", "name: cannot read \"'a\": unterminated string"),
            ("model.width", "expected path=value, such as train.steps=400, got 'model.width'"),
            ("model..width=8", "expected path=value"),
            ("=8", "expected path=value"),
        ],
    )  # fmt: skip
    def test_errors_carry_the_path(self, assignment, message):
        assert fails(override, RUN, assignment, TYPES).startswith(message)

    def test_the_outermost_constructor_speaks_by_its_name(self):
        message = fails(override, RoPE(), "theta=0", TYPES)
        assert message == "RoPE: theta must be positive, got 0.0"


class TestParse:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("8", 8),
            ("-1e-3", -1e-3),
            ("10_000", 10_000),
            ("2**14", 16384),
            ("8*1024 + 1", 8193),
            ("7 // 2 - 7 % 2", 2),
            ("1/4", 0.25),
            ("2**-1", 0.5),
            ("-inf", -math.inf),
            ("True", True),
            (" 'a' ", "a"),
            ("(1, [2, 'b'], None)", (1, (2, "b"), None)),
            ("Linear(8)", Linear(8.0)),
            ("NTK(2, ramp=[1, 2])", NTK(2.0, (1.0, 2.0))),
            ("Softmax(position=RoPE(scaling=Linear(8)))", Softmax(position=RoPE(1e4, Linear(8.0)))),
            ("(Block(Recurrent()), Block(Softmax(), True))",
             (Block(Recurrent()), Block(Softmax(), True))),
        ],
    )  # fmt: skip
    def test_reads(self, text, value):
        parsed = parse(text, TYPES)
        assert parsed == value
        assert type(parsed) is type(value)

    @pytest.mark.parametrize(
        "text",
        [
            "__import__('os')", "__import__('os').getcwd()", "().__class__", "RoPE.mro()",
            "RoPE().theta", "f'{1}'", "f''", "lambda: 1", "(lambda: 1)()", "[x for x in (1, 2)]",
            "tuple(x for x in (1,))", "{1: 2}", "{1, 2}", "RoPE()()", "(1, 2)[0]", "RoPE(*(1, 2))",
            "NTK(**{'factor': 1})", "(*(1, 2),)", "1 if True else 2", "1 < 2", "True and False",
            "not True", "~1", "1 << 9", "'a' * 9", "'a' + 'b'", "-True", "(1,) * 9", "(y := 1)",
            "open('x')", "print", "b'a'", "1j", "...", "(-1)**0.5", "1/0", "10.0**400", "1; 2",
            "x = 1", "import os", "", "(", "\0", "await x", "yield", "`1`", "nan",
        ],
    )  # fmt: skip
    def test_refuses_what_is_no_value(self, text):
        fails(parse, text, TYPES)

    def test_nothing_is_called_but_the_types(self, tmp_path):
        path = tmp_path / "made"
        fails(parse, f"open({str(path)!r}, 'w')", TYPES)
        fails(parse, f"RoPE(theta=open({str(path)!r}, 'w'))", TYPES)
        assert not path.exists()

    @pytest.mark.parametrize("text", ["9**9**9", "2**(10**9)", "(2**200)**2", "2**-(10**9)"])
    def test_refuses_huge_powers_at_once(self, text):
        assert "too large" in fails(parse, text, TYPES)

    @pytest.mark.parametrize("text", ["(" * 5000, "-" * 50_000 + "1", "+".join("1" * 20_000)])
    def test_refuses_deep_nesting(self, text):
        assert fails(parse, text, TYPES, "model").startswith("model: cannot read")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("RoPE", "at: RoPE is a class; write RoPE()"),
            ("RoPE(scaling=NTK)", "at.scaling: NTK is a class; write NTK()"),
            ("rope(1)", "at: unknown type 'rope'; did you mean 'RoPE'? Known: "),
            ("false", "at: unknown name 'false'; did you mean 'False'?"),
            ("LM(remat=block)", "at.remat: unknown name 'block'; did you mean 'Block'? A string "
             "inside takes quotes"),
            ("NTK(1, 2, 3)", "at: NTK takes 2 values without a name, got 3"),
            ("Run('a', LM(), None, 1., (), 4, (), 'note is keyword-only')",
             "at: Run takes 7 values without a name, got 8"),
            ("RoPE(1, theta=2)", "at: RoPE is given 'theta' twice"),
            ("RoPE(theta=1, theta=2)", "at: RoPE is given 'theta' twice"),
            ("Linear()", "at: Linear needs factor"),
            ("NTK(ramp=(1, 'a'))", "at.ramp.1: expected float, got 'a' (str)"),
            ("Softmax(kv_heads=3)", "at: heads=8 is no multiple of kv_heads=3"),
            ("NTK(**x)", "at: cannot read '**x': write the fields out"),
            ("'a' * 9", "at: cannot compute \"'a' * 9\": only + - * / // % ** between numbers"),
            ("1 / 0", "at: cannot compute '1 / 0': division by zero"),
            ("().x", "at: cannot read '().x': a value is a literal, arithmetic on numbers"),
            ("1 +", "at: cannot read '1 +': invalid syntax"),
        ],
    )  # fmt: skip
    def test_errors_say_what_would_be_right(self, text, message):
        assert fails(parse, text, TYPES, "at").startswith(message)


class TestDescribe:
    def test_shows_what_differs_from_the_defaults(self):
        spec = Softmax(kv_heads=1, position=RoPE(scaling=Linear(8.0)))
        assert describe(spec) == "Softmax(kv_heads=1, position=RoPE(scaling=Linear(factor=8.0)))"
        assert describe(Softmax()) == "Softmax()"
        assert describe((1, "a")) == "(1, 'a')"
        assert describe((NTK(),)) == "(NTK(),)"
        assert describe(Run("a", seeds=(0, 1))) == "Run(name='a')"
        assert describe(Linear(np.float64(0.5))) == "Linear(factor=0.5)"


class TestDifferences:
    def test_names_the_places(self):
        other = override(override(RUN, "steps=800", TYPES), "model.pattern.0.mixer.heads=2", TYPES)
        assert differences(RUN, other) == [
            "model.pattern.0.mixer.heads: 4 here, 2 there",
            "steps: 400 here, 800 there",
        ]

    def test_other_types_and_lengths_are_reported_whole(self):
        other = override(RUN, "model.pattern.1.mixer=Recurrent()", TYPES)
        assert differences(RUN, other) == [
            "model.pattern.1.mixer: Softmax(position=RoPE(scaling=NTK())) here, Recurrent() there"
        ]
        assert differences(Run("a", tags=("x",)), Run("a")) == ["tags: ('x',) here, () there"]
        assert differences(RoPE(), NTK()) == ["RoPE() here, NTK() there"]


MODULE = """
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


@runtime_checkable
class Scheme(Protocol):
    def angles(self, n: int) -> float: ...


@dataclass(frozen=True)
class Rotary:
    theta: float = 10000.0

    def angles(self, n: int) -> float:
        return n / self.theta


@dataclass(frozen=True)
class Attention:
    position: Scheme = Rotary()
    scales: tuple[float, ...] = ()
    mode: Literal["fast", "exact"] | None = None
"""


@pytest.mark.parametrize("future", [False, True], ids=["evaluated", "postponed"])
@pytest.mark.parametrize("hook", [False, True], ids=["plain", "instrumented"])
def test_annotations_of_every_kind_of_module(tmp_path, monkeypatch, future, hook):
    name = f"spec_module_{future}_{hook}"
    header = "from __future__ import annotations\n" if future else ""
    (tmp_path / f"{name}.py").write_text(header + MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    if hook:
        with install_import_hook(name, "beartype.beartype"):
            module: Any = importlib.import_module(name)
    else:
        module = importlib.import_module(name)
    types = {"Rotary": module.Rotary, "Attention": module.Attention}

    spec = module.Attention(module.Rotary(5.0), (1.0, 2.0), "fast")
    assert decode(json.loads(json.dumps(encode(spec))), types) == spec
    assert parse(describe(spec), types) == spec
    assert parse("Attention(Rotary(5), (1, 2), 'fast')", types) == spec
    assert override(spec, "mode=exact", types).mode == "exact"
    assert fails(override, spec, "position=3", types) == "position: expected Scheme, got 3 (int)"
    assert fails(override, spec, "scales.0=x", types) == "scales.0: expected float, got 'x' (str)"
    check(spec)


def test_types_of_finds_every_class_in_a_spec():
    found = types_of(RUN)
    assert found == {c.__name__: c for c in (Run, LM, Block, Recurrent, Softmax, RoPE, NTK)}
    assert decode(encode(RUN), found) == RUN
