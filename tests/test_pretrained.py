"""Folders of published weights, without transformers: which files are read, what is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lcx.huggingface import Pretrained
from lcx.huggingface.folder import INDEX, SINGLE

CONFIG = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model in two files and an index."""
    there = tmp_path / "model"
    there.mkdir()
    (there / "config.json").write_text(json.dumps(CONFIG))
    write_shards(there, 0)
    return there


def write_shards(folder: Path, seed: int) -> None:
    rng, D, F = np.random.default_rng(seed), 8, 12
    shapes = {
        "model.embed_tokens.weight": (11, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (11, D),
        **{f"model.layers.0.self_attn.{n}_proj.weight": (D, D) for n in "qkvo"},
        **{f"model.layers.0.mlp.{n}_proj.weight": (F, D) for n in ("gate", "up")},
        "model.layers.0.mlp.down_proj.weight": (D, F),
        **{f"model.layers.0.{n}_layernorm.weight": (D,) for n in ("input", "post_attention")},
    }
    tensors = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    names = list(tensors)
    halves = {SHARDS[0]: names[:4], SHARDS[1]: names[4:]}
    for file, held in halves.items():
        save_file({n: tensors[n] for n in held}, folder / file)
    index = {"metadata": {}, "weight_map": {n: f for f, held in halves.items() for n in held}}
    (folder / INDEX).write_text(json.dumps(index))


def change_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def merged(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / SHARDS[0]) | load_file(folder / SHARDS[1])


def loaded(folder: Path) -> np.ndarray:
    weights = Pretrained(str(folder))
    return np.concatenate([a.ravel() for a in jax.tree.leaves(weights.load(weights.model()))])


def test_an_index_alone_says_what_is_read(folder):
    """Shards of an earlier model that lie beside it sort after its own, and were read."""
    before, mark = loaded(folder), Pretrained(str(folder)).fingerprint()
    old = {n: np.full_like(a, 7) for n, a in merged(folder).items()}
    for name in ("model-00003-of-00003.safetensors", "model-00002-of-00003.safetensors"):
        save_file(old, folder / name)
    save_file(old, folder / SINGLE)
    save_file({"lora_A": np.ones(3, np.float32)}, folder / "adapter_model.safetensors")
    np.testing.assert_array_equal(loaded(folder), before)
    assert Pretrained(str(folder)).fingerprint() == mark
    # the same tensor in two files that are both read
    name, other = "model.norm.weight", SHARDS[1]
    save_file(load_file(folder / other) | {name: old[name]}, folder / other)
    np.testing.assert_array_equal(loaded(folder), before)
    change_index(folder, lambda names: names.update({name: other}))
    assert (loaded(folder) == 7).sum() == 8


def test_one_file_alone_is_read(folder):
    before = loaded(folder)
    save_file(merged(folder), folder / SINGLE)
    (folder / INDEX).unlink()
    for name in SHARDS:
        save_file({n: 0 * a for n, a in load_file(folder / name).items()}, folder / name)
    shutil.copy(folder / SHARDS[0], folder / "consolidated.safetensors")
    np.testing.assert_array_equal(loaded(folder), before)


def test_a_body_saved_by_itself_is_read(folder):
    """GPT-2's and BLOOM's were: without the first part of each name, and with masks beside."""
    before = loaded(folder)
    bare = {name.removeprefix("model."): a for name, a in merged(folder).items()}
    masks = {
        f"layers.0.attn.{n}": np.ones((1, 1, 4, 4), np.float32) for n in ("bias", "masked_bias")
    }
    save_file(bare | masks, folder / SINGLE)
    (folder / INDEX).unlink()
    np.testing.assert_array_equal(loaded(folder), before)
    save_file(bare | {"layers.0.mlp.bias": masks["layers.0.attn.bias"]}, folder / SINGLE)
    weights = Pretrained(str(folder))
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.bias have no place in the model"):
        weights.check(weights.model())


def test_a_fingerprint_is_of_the_config_and_of_what_is_read(folder, tmp_path):
    def mark(folder):
        return Pretrained(str(folder)).fingerprint()

    first = mark(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert mark(tmp_path / "copy") == first
    (tmp_path / "copy" / "README.md").write_text("of no weight")
    (tmp_path / "copy" / SHARDS[0]).rename(tmp_path / "copy" / "a.safetensors")
    change_index(
        tmp_path / "copy",
        lambda names: names.update(
            {n: "a.safetensors" for n, f in names.items() if f == SHARDS[0]}
        ),
    )
    assert mark(tmp_path / "copy") == first  # called otherwise
    config = CONFIG | {"rms_norm_eps": 1e-5}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert mark(tmp_path / "copy") != first
    write_shards(folder, seed=1)
    second = mark(folder)
    assert second != first
    data = bytearray((folder / SHARDS[1]).read_bytes())
    data[-1] ^= 1  # a bit of the last number
    (folder / SHARDS[1]).write_bytes(data)
    assert mark(folder) not in (first, second)


def refused(folder: Path, error: type[Exception], message: str) -> None:
    """By every way in."""
    for ask in ("load", "fingerprint"):
        weights = Pretrained(str(folder))
        with pytest.raises(error, match=message) as caught:
            weights.load(weights.model()) if ask == "load" else weights.fingerprint()
        assert "\n" not in str(caught.value)


def test_an_index_that_does_not_fit_its_files_is_refused(folder):
    change_index(folder, lambda names: names.update({"model.extra": SHARDS[1]}))
    refused(folder, ValueError, f"index.json says that {SHARDS[1]} holds model.extra$")
    (folder / SHARDS[1]).unlink()
    refused(folder, FileNotFoundError, f"index.json names {SHARDS[1]}, and no such file is there")
    for text, message in (
        ("[]", "index.json holds a list, not an object"),
        ('{"weight_map": ["a"]}', "index.json has no weight_map from tensors to files"),
        ('{"weight_map": {"a": 1}}', "index.json has no weight_map from tensors to files"),
        ("{", "index.json is no JSON"),
    ):
        (folder / INDEX).write_text(text)
        refused(folder, ValueError, message)


@pytest.mark.parametrize("kept", [4, 60, -9])
def test_a_file_that_was_cut_short_is_named(folder, kept):
    path = folder / SHARDS[0]
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, ValueError, rf"{SHARDS[0]} cannot be read \(.*fetch the file again")


def test_folders_without_the_files_that_are_read(folder, tmp_path):
    (folder / INDEX).unlink()
    refused(folder, FileNotFoundError, rf"neither .* nor .*holds {SHARDS[0]} \(of 2\): fetch")
    for name in SHARDS:
        (folder / name).unlink()
    refused(folder, FileNotFoundError, "neither .* nor model.safetensors in .*model$")
    (folder / "pytorch_model.bin").touch()
    refused(folder, FileNotFoundError, "pytorch_model.bin is a pickle, .*: convert it by transf")
    (folder / "RWKV.pth").touch()
    refused(
        folder, FileNotFoundError, "convert it by python .*weights_only=True.*RWKV.pth .*model.safe"
    )
    refused(tmp_path / "nowhere", FileNotFoundError, r"no .*config\.json")
    refused(folder / "pytorch_model.bin", ValueError, "a file; it has to be the folder with config")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "config.json is no JSON"),
        (b'{"model_type": "ll\xe4ma"}', "config.json is no JSON: 'utf-8' codec"),
        (b"[1]", "config.json holds a list, not an object"),
        # a family that is not known, before what it lacks of a Llama
        (b'{"model_type": "t5", "d_model": 8}', "is of model_type 't5'; those known are llama"),
        (b'{"model_type": "gptneox"}', r"'gptneox' \(did you mean 'gpt_neox'\?\); those known"),
        (b"{}", "names no model_type; those known are llama"),
        (b'{"model_type": "llama"}', "does not say intermediate_size"),
        (json.dumps(CONFIG | {"vocab_size": True}).encode(), "vocab_size is True, and has to be"),
        (json.dumps(CONFIG | {"hidden_size": 8.5}).encode(), "hidden_size is 8.5, and has to be"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(folder, config, message):
    (folder / "config.json").write_bytes(config)
    with pytest.raises(ValueError, match=message) as caught:
        Pretrained(str(folder)).model()
    assert "\n" not in str(caught.value)


def test_a_config_may_say_no_length(folder):
    assert Pretrained(str(folder)).trained_length is None
    (folder / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 64}))
    assert Pretrained(str(folder)).trained_length == 64
