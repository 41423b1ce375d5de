"""Which rotary pairs a longer text interpolates and which it extrapolates."""

import math

import numpy as np
import pytest
from rich.console import Console

from lcx.command.cli import positions_command
from lcx.command.wavelengths import (
    EXTRAPOLATED,
    INTERPOLATED,
    KEPT,
    print_wavelengths,
    wavelengths,
    write_picture,
)
from lcx.positions import NTK, DynamicNTK, LongRoPE, PositionInterpolation, RoPE, XPos, YaRN

# Heads of 8 features and a base of 10^4: pairs turn every 6.28, 62.8, 628 and 6,283 tokens.
WIDTH, TRAINED, READ = 8, 100, 400


def verdicts(position, length: int = READ):
    return wavelengths(position, WIDTH, TRAINED, length).verdicts


def test_what_each_scaling_makes_of_the_pairs():
    assert verdicts(RoPE()) == [KEPT, KEPT, EXTRAPOLATED, EXTRAPOLATED]
    assert verdicts(RoPE(), length=TRAINED) == [KEPT] * 4
    assert verdicts(XPos()) == verdicts(RoPE())
    assert verdicts(RoPE(scaling=PositionInterpolation(4.0))) == [INTERPOLATED] * 4
    assert verdicts(RoPE(scaling=PositionInterpolation(2.0)))[2:] == [EXTRAPOLATED] * 2
    # the slowest pair by 4, the one before by 4^(2/3), which is not enough
    assert verdicts(RoPE(scaling=NTK(4.0))) == [KEPT, INTERPOLATED, EXTRAPOLATED, INTERPOLATED]
    assert verdicts(RoPE(scaling=DynamicNTK(TRAINED))) == verdicts(RoPE(scaling=NTK(4.0)))
    yarn = RoPE(scaling=YaRN(4.0, original=TRAINED, beta_fast=8.0))
    assert verdicts(yarn)[2:] == [INTERPOLATED] * 2
    lists = LongRoPE((1.0,) * 4, (1.0, 1.0, 4.0, 1.0), original=TRAINED, factor=4.0)
    long = wavelengths(RoPE(scaling=lists), WIDTH, TRAINED, READ)
    assert long.verdicts == [KEPT, KEPT, INTERPOLATED, EXTRAPOLATED]
    assert long.magnitude == math.sqrt(1 + math.log(4) / math.log(100))


def test_numbers_of_each_pair():
    waves = wavelengths(RoPE(scaling=NTK(4.0)), WIDTH, TRAINED, READ)
    np.testing.assert_allclose(waves.trained, 2 * np.pi * 10.0 ** np.arange(4))
    np.testing.assert_allclose(waves.turns, 100 / waves.trained)
    np.testing.assert_allclose(waves.stretched / waves.trained, 4.0 ** (np.arange(4) / 3))
    assert np.isinf(waves.known[:2]).all()
    np.testing.assert_allclose(waves.known[2:], [100 * 4 ** (2 / 3), 400])


def test_table_and_picture(tmp_path):
    waves = wavelengths(RoPE(fraction=0.5, scaling=YaRN(4.0, original=100)), 16, 100, 400)
    console = Console(record=True, width=100)
    print_wavelengths(waves, console)
    text = " ".join(console.export_text().split())
    assert "of 4 pairs, 1 kept, 3 interpolated, 0 extrapolated. 2 never completed a turn" in text
    assert "Scores are multiplied by 1.296" in text
    for kind, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        path = tmp_path / "new" / f"picture.{kind}"
        write_picture(waves, path)
        assert path.read_bytes().startswith(begin)


def test_command(tmp_path, capsys):
    out = tmp_path / "p.png"
    positions_command(
        "RoPE(scaling=PositionInterpolation(2))", train_len=100, eval_len=400, width=8, out=out
    )
    assert "2 interpolated, 2 extrapolated" in " ".join(capsys.readouterr().out.split())
    assert out.exists()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("PositionInterpolation(4)", {}, r"write RoPE\(scaling=PositionInterpolation\(4\)\)"),
        ("RoPE(scaling=YaRN(4))", {}, "YaRN needs original"),
        ("RoPE(scaling=PositionInterpolation(0.5))", {}, "factor must be at least 1"),
        ("RoPE(scalling=PositionInterpolation(2))", {}, "did you mean 'scaling'"),
        ("NoPE()", {}, "NoPE turns no features"),
        ("8", {}, "8 is no position scheme"),
        ("RoPE()", {"width": 9}, "heads of 9 are odd"),
        ("RoPE()", {"train_len": 0}, "--train-len must be at least 1"),
    ],
)
def test_what_is_refused(text, options, message, tmp_path):
    given = {"train_len": 100, "eval_len": 400, "width": 8, "out": tmp_path / "p.png"} | options
    with pytest.raises(ValueError, match=message):
        positions_command(text, **given)
    assert not list(tmp_path.iterdir())


def test_a_picture_s_name_must_say_its_kind(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png"):
        positions_command("RoPE()", train_len=9, eval_len=9, out=tmp_path / "picture")
