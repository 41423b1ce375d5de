"""Models out: what is written is read back to the bit, on any mesh, and nothing is overwritten."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import tokenizers

import lcx as lcx_package
from lcx.block import Block, SandwichBlock
from lcx.huggingface import Pretrained, export
from lcx.huggingface.export import family_of, write_model
from lcx.huggingface.folder import INDEX, Folder
from lcx.layers import RMSNorm, SwiGLU
from lcx.mixers import RetNet, SoftmaxAttention
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.positions import RoPE, XPos
from lcx.sparsity import Strided, Window
from lcx.types import Policy
from tests.test_cli import TINY, lcx

ATTENTION = SoftmaxAttention(heads=4, kv_heads=2, position=RoPE(5e5))
LLAMA = LM(50, 32, (Block(ATTENTION, SwiGLU(48)),), repeats=2, tied=False)


@pytest.fixture(scope="module")
def params():
    return jax.jit(LLAMA.init)(jax.random.key(0))


def equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_files_of_any_size_are_read_back_by_slices(params, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD", 20_000)
    write_model(tmp_path / "model", LLAMA, params)
    assert (tmp_path / "model" / INDEX).is_file()
    weights = Pretrained(str(tmp_path / "model"))
    assert weights.model() == LLAMA
    equal(weights.load(LLAMA), params)

    largest = 0
    read = Folder.read

    def watched(self, name, index=None):
        nonlocal largest
        found = read(self, name, index)
        largest = max(largest, found.size)
        return found

    monkeypatch.setattr(Folder, "read", watched)
    cut = weights.load(LLAMA, Mesh(fsdp=2, model=2))
    equal(cut, params)
    up = cut.blocks[0].channel.up.kernel[...]
    assert {shard.data.shape for shard in up.addressable_shards} == {(2, 16, 24)}
    assert largest == 50 * 32 / 4  # a quarter of the embedding


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_exactly(dtype, params, tmp_path):
    """Into fp32, which holds every value of both; a bf16 model keeps what bf16 files hold."""
    narrow = jax.tree.map(lambda a: a.astype(dtype), params)
    write_model(tmp_path / "model", LLAMA, narrow)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    weights = Pretrained(str(tmp_path / "model"))
    equal(weights.load(LLAMA), jax.tree.map(lambda a: a.astype("float32"), narrow))
    assert weights.dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
    kept = weights.load(replace(LLAMA, policy=Policy(params=weights.dtype)))
    assert {a.dtype.name for a in jax.tree.leaves(kept)} == {weights.dtype}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            LM(50, 32, (Block(RetNet(heads=2)),)),
            "has blocks of RetNet and SwiGLU; those known are llama",
        ),
        (
            LM(50, 32, (Block(SoftmaxAttention(sparsity=Strided(4))),)),
            r"llama is near: model.pattern.0.mixer.sparsity: Strided\(stride=4\) here, Full\(\)",
        ),
        (
            LM(50, 32, (Block(SoftmaxAttention(position=XPos())),)),
            "is near: XPos.* has no spelling",
        ),
        (
            LM(50, 32, (Block(SoftmaxAttention(sparsity=Window(4, sinks=2))),)),
            "sparsity",
        ),
        (LM(50, 32, (SandwichBlock(),)), "no published family"),
        (LM(50, 32, (Block(norm=RMSNorm(eps=1e-5)),)), "norm.eps: 1e-05 here, 1e-06"),
    ],
)
def test_a_model_that_no_family_has_is_refused(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_model(tmp_path / "out", model, jax.eval_shape(model.init, jax.random.key(0)))
    assert not (tmp_path / "out").exists()


def test_what_changes_no_output_is_no_difference():
    model = LM(
        *(None, 32, (Block(SoftmaxAttention(heads=2, head_width=16), SwiGLU(), dropout=0.1),)),
        remat="block",
        embed_noise=5.0,
    )
    _, config = family_of(model)
    assert config["vocab_size"] == 257
    assert config["intermediate_size"] == 96
    assert config["num_key_value_heads"] == 2


def test_nothing_is_overwritten(params, tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty, and nothing is overwritten"):
        write_model(tmp_path, LLAMA, params)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.fixture(scope="module")
def exported(texts, tmp_path_factory):
    """A folder of runs, and that of the exported one in it."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_TEXTS", f"{texts}/*.txt")
        assert lcx("compare", TINY, "--out", out / "runs", "--only", "softmax") == 0
    assert lcx("export", out / "runs" / "softmax", "--to", out / "model") == 0
    return out


def points(run):
    (path,) = (run / "eval").glob("*.json")
    return [(point["context"], point["ppl"]) for point in json.loads(path.read_text())["contexts"]]


def test_an_exported_run_reads_as_it_did(exported, texts, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = {
        "data.source": f"TextFiles({f'{texts}/*.txt'!r})",
        "data.validation": "0.2",
        "data.test": "0.3",
        "evaluation": "SameTargets(contexts=(16, 64, 200), span=32)",
    }
    sets = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    for _ in range(2):  # the second time nothing is left to do
        assert lcx("evaluate", exported / "model", "--out", exported / "again", *sets) == 0
    assert points(exported / "again" / "model") == points(exported / "runs" / "softmax")
    assert not (exported / "again" / "model" / "checkpoints").exists()
    run = lcx_package.open_run(exported / "again" / "model")
    equal(run.params, lcx_package.open_run(exported / "runs" / "softmax").params)


def test_what_lies_in_an_exported_folder(exported):
    model = exported / "model"
    config = json.loads((model / "config.json").read_text())
    assert (config["max_position_embeddings"], config["eos_token_id"]) == (48, 256)
    assert json.loads((model / "generation_config.json").read_text())["bos_token_id"] == 256
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.encode("a né").ids == [256, *"a né".encode()]
    assert tokenizer.decode([256, *"a né".encode()]) == "a né"
    card = (model / "README.md").read_text()
    assert card.count("| 16 | ") == card.count("| 200 | ") == 1
    assert f"| 64 | {points(exported / 'runs' / 'softmax')[1][1]:.4g} | " in card


@pytest.mark.parametrize(
    ("run", "to", "message"),
    [
        ("runs/softmax", "model", "is not empty, and nothing is overwritten"),
        ("runs/softmax", "model/config.json", "is not empty, and nothing is overwritten"),
        ("runs", "other", "it holds the runs softmax"),
        ("nowhere", "other", "nowhere is no run"),
    ],
)
def test_exports_that_are_refused(exported, run, to, message, capsys):
    before = sorted(exported.rglob("*"))
    assert lcx("export", exported / run, "--to", exported / to) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(exported.rglob("*")) == before
