"""RWKV-4 to 7 under BlinkDL's names: what shapes tell, what is refused, in and out, commands."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lcx.block import Block
from lcx.huggingface import Pretrained
from lcx.huggingface.export import family_of, write_model
from lcx.huggingface.folder import SINGLE
from lcx.huggingface.tensors import written
from lcx.layers import LayerNorm, RWKV6ChannelMix, RWKV7ChannelMix, RWKVChannelMix
from lcx.mixers import RWKV4, RWKV5, RWKV6, RWKV7
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.types import Batch, Policy
from tests.blinkdl import VERSIONS, shapes, state_dict
from tests.test_cli import TINY, lcx

NORM = LayerNorm(1e-5)
MODELS = {
    4: (RWKV4(), RWKVChannelMix(80)),
    5: (RWKV5(3), RWKVChannelMix(80)),
    6: (RWKV6(3, mix_rank=4, decay_rank=10), RWKV6ChannelMix(80)),
    7: (RWKV7(3, decay_rank=6, rate_rank=7, first_rank=5, gate_rank=9), RWKV7ChannelMix(80)),
}


def rwkv(mixer, channel, width=48, vocab=260) -> LM:
    pattern = (Block(mixer, channel, NORM),)
    return LM(vocab, width, pattern, repeats=3, tied=False, norm=NORM, embed_norm=NORM)


def saved(tensors, folder) -> Pretrained:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / SINGLE)
    return Pretrained(str(folder))


@pytest.mark.parametrize("version", VERSIONS)
def test_names_and_shapes_tell_the_model_and_it_goes_out_as_it_came_in(version, tmp_path):
    tensors = state_dict(version)
    weights = saved(tensors, tmp_path)
    model = weights.model()
    assert model == rwkv(*MODELS[version])
    assert weights.dtype == "float32"
    assert weights.trained_length is None
    assert weights.ends == ()
    params = weights.load(model)
    found = dict(written(weights.family, model, params))
    assert found.keys() == tensors.keys()
    for name, a in tensors.items():
        np.testing.assert_array_equal(found[name], a, err_msg=name)


@pytest.mark.parametrize("version", VERSIONS)
def test_which_layout_is_written(version, tmp_path):
    """RWKV-4 is one of transformers' families; the others are written as they were read."""
    tensors = state_dict(version)
    weights = saved(tensors, tmp_path / "in")
    model = weights.model()
    write_model(tmp_path / "out", model, weights.load(model), length=64, bos=0)
    again = Pretrained(str(tmp_path / "out"))
    assert again.model() == model
    assert (tmp_path / "out" / "config.json").exists() == (version == 4)
    if version > 4:
        found = load_file(tmp_path / "out" / SINGLE)
        assert found.keys() == tensors.keys()
        for name, a in tensors.items():
            np.testing.assert_array_equal(found[name], a, err_msg=name)


def test_half_precision_is_kept(tmp_path):
    tensors = {name: a.astype(jax.numpy.bfloat16) for name, a in state_dict(6).items()}
    weights = saved(tensors, tmp_path)
    assert weights.dtype == "bfloat16"
    model = replace(weights.model(), policy=Policy(params="bfloat16"))
    for name, a in written(weights.family, model, weights.load(model)):
        np.testing.assert_array_equal(a, tensors[name], err_msg=name)
    tensors["blocks.1.att.time_decay"] = tensors["blocks.1.att.time_decay"].astype(np.float32)
    assert saved(tensors, tmp_path).dtype == "float32"


def test_what_the_first_layer_of_rwkv_7_does_not_read_may_be_absent(tmp_path):
    tensors = state_dict(7)
    first = [f"blocks.0.att.v{n}" for n in range(3)]
    lacking = saved({n: a for n, a in tensors.items() if n not in first}, tmp_path / "without")
    whole = saved(tensors, tmp_path / "with")
    model = lacking.model()
    assert model == whole.model()
    for name, a in written(lacking.family, model, lacking.load(model)):
        np.testing.assert_array_equal(a, 0 * a if name in first else tensors[name], err_msg=name)
    tokens = np.arange(40, dtype=np.int32)[None]
    call = jax.jit(lambda params: model(params, Batch(tokens)).x)
    np.testing.assert_array_equal(*(call(w.load(model)) for w in (lacking, whole)))
    cut = lacking.load(model, Mesh(fsdp=2))
    jax.tree.map(np.testing.assert_array_equal, cut, lacking.load(model))
    assert lacking.fingerprint() != whole.fingerprint()


def changed(version: int, change) -> dict[str, np.ndarray]:
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes(version).items()}
    change(tensors)
    return tensors


def without(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def having(name, *shape):
    return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


def renamed(part, other):
    return lambda tensors: [
        tensors.update({name.replace(part, other): tensors.pop(name)})
        for name in [*tensors]
        if part in name
    ]


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        (4, without("blocks.1.att.time_first"), "blocks.1.att.time_first is absent, the model's"),
        (4, without("blocks.1.ln2.bias"), r"ln2.bias is absent, .* asks for \(48,\)"),
        (4, renamed("blocks.1.", "blocks.3."), "blocks.1.ln1.weight is absent"),
        (5, without("head.weight"), r"head.weight is absent, the model's head.kernel"),
        (6, without("blocks.0.att.time_maa_w2"), "there is no blocks.0.att.time_maa_w2, .* mix_r"),
        (7, without("blocks.1.att.v1"), "blocks.1.att.v1 is absent"),
        (7, without("blocks.0.ffn.key.weight"), "no blocks.0.ffn.key.weight, .* intermediate_size"),
        (7, having("blocks.2.att.more", 3), "blocks.2.att.more have no place in the model"),
        (5, having("blocks.0.att.time_faaaa", 6, 8), r"faaaa is \(6, 8\), .* asks for \(3, 16\)"),
        (5, having("blocks.2.att.time_decay", 6, 8), r"2.att.time_decay is \(6, 8\), .*\(3, 16\)"),
        (6, having("blocks.1.att.time_faaaa", 6, 8), r"faaaa is \(6, 8\), .* asks for \(3, 16\)"),
        (6, having("blocks.0.att.time_decay", 48), r"time_decay is \(48,\), .* \(1, 1, 48\)"),
        (6, having("blocks.0.att.time_faaaa"), r"faaaa is \(\), whose axis 0 would be heads"),
        (7, having("blocks.0.att.r_k", 5, 9), "RWKV7: 5 heads do not divide"),
        (7, having("blocks.0.att.w1", 48, 8), r"w1 is \(48, 8\), .* asks for \(48, 6\)"),
        (7, having("blocks.1.ffn.key.weight", 90, 48), r"is \(90, 48\), .* asks for \(80, 48\)"),
        (4, having("blocks.0.att.key.weight", 64, 48), r"is \(64, 48\), .* asks for \(48, 48\)"),
        # versions and variants that lcx does not have
        (5, without(*(f"blocks.{n}.att.gate.weight" for n in range(3))), "RWKV-5.0, which lcx"),
        (5, having("blocks.0.att.time_decay", 3), r"is \(3,\), one decay a head: RWKV-5.1, which"),
        (5, having("blocks.0.att.time_decay", 3, 1, 1), r"\(3, 1, 1\), one decay a head: RWKV-5.1"),
        (
            6,
            having("blocks.0.att.time_state", 3, 16, 16),
            "time_state is of a learned initial state, which lcx does not read",
        ),
        (6, having("blocks.0.att.gate_w1", 48, 8), "gate_w1 is of RWKV-6a"),
        (6, having("blocks.0.att.time_maa_rkvw_w1", 48, 8), "rkvw_w1 is of RWKV-6b or 6c"),
        (7, having("blocks.0.ffn.s_emb.weight", 260, 32), "s_emb.weight is of RWKV-7a: DeepEmbed"),
        (7, having("blocks.0.ffn.enn.weight", 260, 32), "enn.weight is of RWKV-8: DeepEmbed"),
        (7, having("blocks.0.qkv.qq.weight", 8, 48), "qq.weight is of RWKV-7b or 8: attention"),
        (4, having("blocks.1.tiny_q.weight", 8, 48), "tiny_q.weight is of attention in one"),
        (4, having("head_q.weight", 8, 48), "head_q.weight is of a head that copies"),
    ],
)
def test_what_does_not_fit_is_refused(version, change, message, tmp_path):
    weights = saved(changed(version, change), tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        weights.check(weights.model())
    assert str(caught.value).startswith("Pretrained(folder=")
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_rwkv(tmp_path):
    weights = saved({"model.embed_tokens.weight": np.zeros((8, 4), np.float32)}, tmp_path / "llama")
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json, which all models but"):
        weights.model()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json$"):
        Pretrained(str(tmp_path / "empty")).model()
    other = saved(state_dict(4), tmp_path / "renamed")
    (tmp_path / "renamed" / SINGLE).rename(tmp_path / "renamed" / "RWKV-4.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds RWKV-4.safetensors .* call model.safeten"):
        other.model()


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (rwkv(RWKV5(2), RWKVChannelMix(), 64), "RWKV-5"),
        (rwkv(RWKV6(2), RWKV6ChannelMix(), 64), "RWKV-6"),
        (rwkv(RWKV7(2), RWKV7ChannelMix(), 64, vocab=None), "RWKV-7"),
        (rwkv(RWKV4(), RWKVChannelMix(), 64), "rwkv"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_of_lcx_s_own_sizes_have_a_layout(model, kind):
    _, config = family_of(model)
    assert config["model_type"] == kind


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            replace(rwkv(RWKV7(2), RWKV7ChannelMix(), 64), tied=True),
            "RWKV-7 is near: model.tied: True here, False",
        ),
        (
            replace(rwkv(RWKV5(2), RWKVChannelMix(), 64), embed_norm=None),
            "RWKV-5 is near: model.embed_norm",
        ),
        (rwkv(RWKV6(2), RWKVChannelMix(), 64), "blocks of RWKV6 and RWKVChannelMix"),
    ],
)
def test_what_is_no_version_s_is_not_written(model, message):
    with pytest.raises(ValueError, match=message):
        family_of(model)


SETS = {
    "data.validation": "0.2",
    "data.test": "0.3",
    "evaluation": "SameTargets(contexts=(16, 64), span=32)",
}


def evaluated(folder, out, texts, tokenizer=None) -> int:
    sets = SETS | {"data.source": f"TextFiles({f'{texts}/*.txt'!r})"}
    sets |= {} if tokenizer is None else {"data.tokenizer": tokenizer}
    given = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    return lcx("evaluate", folder, "--out", out, *given)


def points(run):
    (path,) = (run / "eval").glob("*.json")
    return [(point["context"], point["ppl"]) for point in json.loads(path.read_text())["contexts"]]


def test_a_state_dict_is_evaluated_with_a_tokenizer_that_is_given(texts, tmp_path, capsys):
    saved(state_dict(6), tmp_path / "finch")
    assert evaluated(tmp_path / "finch", tmp_path / "out", texts) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "finch/tokenizer.json'): no such file; a JSON file of the tokenizers library" in said
    assert evaluated(tmp_path / "finch", tmp_path / "out", texts, "Bytes()") == 0
    assert [context for context, _ in points(tmp_path / "out" / "finch")] == [16, 64]
    report = json.loads((tmp_path / "out/report/SameTargets/report.json").read_text())
    assert report["variants"]["finch"]["train_len"] is None
    assert lcx("generate", tmp_path / "finch", "--prompt", "a") == 2
    assert "of the tokenizers library is needed" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_run_is_exported_and_reads_as_it_did(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TINY_TEXTS", f"{texts}/*.txt")
    norm = "norm=LayerNorm()"
    block = f"Block(RWKV5(heads=2), RWKVChannelMix(hidden=32), {norm})"
    model = f"LM(width=16, pattern=({block},), repeats=1, tied=False, {norm}, embed_{norm})"
    given = {"model": model, "train.steps": "2", "evaluation": SETS["evaluation"]}
    sets = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    assert lcx("compare", TINY, "--out", tmp_path / "runs", "--only", "softmax", *sets) == 0
    assert lcx("export", tmp_path / "runs" / "softmax", "--to", tmp_path / "eagle") == 0
    assert "softmax, as BlinkDL's RWKV-5, a state dict: " in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "eagle").iterdir()}
    assert names == {"README.md", SINGLE, "tokenizer.json", "tokenizer_config.json"}
    card = (tmp_path / "eagle" / "README.md").read_text()
    assert "- lcx\n- RWKV-5\n" in card
    assert "| written | as BlinkDL's RWKV-5, a state dict, by lcx " in card
    assert 'Tokenizer.from_file("eagle/tokenizer.json")' in card
    assert "transformers" not in card
    assert evaluated(tmp_path / "eagle", tmp_path / "again", texts) == 0
    assert points(tmp_path / "again" / "eagle") == points(tmp_path / "runs" / "softmax")
