"""Position schemes from and to Hugging Face configs, without transformers."""

from dataclasses import replace

import pytest

from lcx.huggingface.positions import read_positions, write_positions
from lcx.positions import (
    NTK,
    ALiBi,
    DynamicNTK,
    DynamicYaRN,
    Learned,
    Llama3,
    LongRoPE,
    NoPE,
    PositionInterpolation,
    RoPE,
    XPos,
    YaRN,
)

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": 97,
}
SHORT, LONG = (1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6), (1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0)
SCALINGS = (
    None,
    PositionInterpolation(4.0),
    DynamicNTK(original=256, factor=2.0),
    YaRN(4.0, original=64),
    YaRN(4.0, 64, beta_fast=8.0, beta_slow=0.5, attention_factor=1.25, truncate=False),
    Llama3(8.0, original=64, low=2.0, high=9.0),
    LongRoPE(SHORT, LONG, original=64, factor=4.0),
    LongRoPE(SHORT, LONG, original=64, factor=4.0, attention_factor=1.5),
)
OTHERS = (
    (ALiBi(), {"model_type": "bloom"}),
    (ALiBi(bias_max=16.0), {"model_type": "mpt"}),
    (ALiBi(scale=0.25), {"model_type": "falcon"}),
    (NoPE(), {"model_type": "smollm3", "num_hidden_layers": 2}),
    (Learned(128), {"model_type": "gpt2"}),
    (RoPE(interleaved=True), {"model_type": "cohere"}),
)


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_what_is_written_reads_back_equal(scaling, spelling):
    position = RoPE(5e5, scaling)
    written = write_positions(position, LLAMA, spelling)
    assert spelling in written
    assert read_positions(written) == position
    assert {n: written[n] for n in ("model_type", "vocab_size")} == {
        "model_type": "llama",
        "vocab_size": 97,
    }
    # over a config that said something else, nothing of it is left
    before = write_positions(RoPE(scaling=YaRN(2.0, 128), fraction=0.5), LLAMA, spelling)
    assert read_positions(write_positions(position, before, "rope_parameters")) == position


@pytest.mark.parametrize(("position", "family"), OTHERS, ids=str)
def test_other_families(position, family):
    config = LLAMA | family
    assert read_positions(write_positions(position, config)) == position


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_a_part_that_turns(spelling):
    position = RoPE(fraction=0.5)
    assert read_positions(write_positions(position, LLAMA, spelling)) == position
    neox = {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 1e4}
    assert read_positions(LLAMA | neox) == RoPE(fraction=0.25)


def test_what_families_leave_unsaid():
    """The configs of Llama 1 and Falcon say no theta, that of Phi not which part turns."""
    assert read_positions(LLAMA) == RoPE()
    assert read_positions(LLAMA | {"model_type": "falcon"}) == RoPE()
    phi = read_positions(LLAMA | {"model_type": "phi", "rope_theta": 1e4})
    assert phi == RoPE(fraction=0.5)
    layers = {"model_type": "smollm3", "rope_theta": 5e6, "no_rope_layers": [1, 1]}
    assert read_positions(LLAMA | layers) == RoPE(5e6)


def test_fixed_ntk_is_a_larger_base():
    written = write_positions(RoPE(1e4, NTK(4.0)), LLAMA)
    assert read_positions(written) == RoPE(1e4 * 4.0 ** (16 / 14))


def test_spellings_of_the_hub():
    """As the configs of LongChat, Llama 3.1, Phi-3 and Qwen 2.5 have them."""
    old = LLAMA | {"rope_theta": 1e4}
    assert read_positions(old | {"rope_scaling": {"type": "linear", "factor": 8}}) == RoPE(
        scaling=PositionInterpolation(8.0)
    )
    llama = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    theta = {"rope_theta": 5e5}
    assert read_positions(old | theta | {"rope_scaling": llama}) == RoPE(5e5, Llama3(8.0, 8192))
    phi = {"type": "su", "short_factor": list(SHORT), "long_factor": list(LONG)}
    top = {"original_max_position_embeddings": 64, "model_type": "phi3", "rope_scaling": phi}
    assert read_positions(old | top) == RoPE(scaling=LongRoPE(SHORT, LONG, 64, 4.0))
    qwen = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read_positions(old | {"rope_scaling": qwen}) == RoPE(scaling=YaRN(4.0, 32768))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"rope_type": "mrope"}, "rope_type 'mrope' is not known; known are default, linear"),
        ({"rope_type": "linear"}, "'linear' needs factor"),
        ({"rope_type": "linear", "factor": 0.5}, "factor must be at least 1"),
        ({"rope_type": "yarn", "factor": 4.0}, "needs original_max_position_embeddings"),
        ({"rope_type": "llama3", "factor": 4.0}, "needs low_freq_factor"),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale_all_dim": 1.0},
            "'yarn' with mscale_all_dim: it may say attention_factor",
        ),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0],
                "long_factor": [2.0],
                "factor": 2.0,
                "original_max_position_embeddings": 64,
            },
            "1 factors in short, for 8 pairs",
        ),
        ({"full_attention": {"rope_type": "default"}}, "layers have different positions"),
        ({"rope_type": "default", "partial_rotary_factor": 0.2}, "are odd"),
    ],
)
def test_what_is_not_known_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        read_positions(LLAMA | {"rope_parameters": {"rope_theta": 1e4} | said})


def test_other_refusals():
    with pytest.raises(ValueError, match=r"model_type 'mamba'.*Known are bloom"):
        read_positions(LLAMA | {"model_type": "mamba"})
    with pytest.raises(ValueError, match="no rope_theta"):
        read_positions(LLAMA | {"model_type": "qwen2"})
    for said, message in (
        ({"rope_condense_ratio": 8}, "says rope_condense_ratio, which is not known"),
        ({"dual_chunk_attention_config": {}}, "dual_chunk_attention_config"),
        ({"rope_scaling": 4.0}, "rope_scaling must be a dict"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor must be a number"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "says different things"),
        ({"model_type": "smollm3", "rope_theta": 1e4}, "smollm3 needs no_rope_layers"),
        ({"model_type": "cohere2", "rope_theta": 1e4}, "model_type 'cohere2'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_positions(LLAMA | said)
    short = {n: v for n, v in LLAMA.items() if n != "max_position_embeddings"}
    dynamic = {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2}}
    with pytest.raises(ValueError, match="max_position_embeddings"):
        read_positions(short | dynamic)
    with pytest.raises(ValueError, match="say different things"):
        read_positions(
            LLAMA | {"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"type": "linear"}}
        )
    with pytest.raises(ValueError, match="some layers"):
        read_positions(LLAMA | {"no_rope_layers": [1, 0]})
    for position in (XPos(), NoPE(), ALiBi(), RoPE(scaling=DynamicYaRN(64)), Learned(9)):
        with pytest.raises(ValueError, match=r"has no (spelling|rope_type)"):
            write_positions(position, LLAMA)
    with pytest.raises(ValueError, match="pairs halves"):
        write_positions(replace(RoPE(), interleaved=True), LLAMA)
