"""Configs that lcx writes, read and written again by transformers, say the same to lcx."""

import warnings

import pytest

from lcx.huggingface.positions import HALVES, NEIGHBOURS, read_positions, write_positions
from lcx.positions import (
    ALiBi,
    DynamicNTK,
    Learned,
    LongRoPE,
    NoPE,
    PositionInterpolation,
    RoPE,
    YaRN,
)
from tests.parity.against_torch import NEEDED

transformers = pytest.importorskip("transformers", reason=NEEDED)

SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
LISTS = (1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6), (1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0)
SCALINGS = (
    None,
    PositionInterpolation(4.0),
    DynamicNTK(512, 2.0),
    YaRN(4.0, 128),
    LongRoPE(*LISTS, 128, 4.0),
)


def sizes(kind: str) -> dict:
    derived = ("head_dim",) if kind == "falcon" else ()
    return {n: v for n, v in SIZES.items() if n not in derived} | {"model_type": kind}


def through_transformers(config: dict) -> dict:
    """What transformers makes of a config, written out again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoConfig.for_model(**config).to_dict()


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", sorted(HALVES | NEIGHBOURS))
def test_every_family_keeps_what_is_written(kind, spelling):
    config = sizes(kind)
    for scaling in SCALINGS:
        alone = {"phi3": LongRoPE | None, "recurrent_gemma": type(None)}
        if kind in alone and not isinstance(scaling, alone[kind]):
            with pytest.raises(ValueError, match=f"{kind} has no rope_type"):
                write_positions(RoPE(scaling=scaling), config, spelling)
            continue
        position = RoPE(5e4, scaling, interleaved=kind in NEIGHBOURS)
        written = write_positions(position, config, spelling)
        assert read_positions(through_transformers(written)) == position, written
    half = RoPE(5e4, fraction=0.5, interleaved=kind in NEIGHBOURS)
    written = write_positions(half, config, spelling)
    assert read_positions(through_transformers(written)) == half, written


@pytest.mark.parametrize(
    ("kind", "position"),
    [
        ("bloom", ALiBi()),
        ("mpt", ALiBi(bias_max=16.0)),
        ("falcon", ALiBi(scale=0.25)),
        ("smollm3", NoPE()),
        ("gpt2", Learned(96)),
    ],
)
def test_other_schemes(kind, position):
    config = sizes(kind)
    assert read_positions(through_transformers(write_positions(position, config))) == position
