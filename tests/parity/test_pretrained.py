"""Published weights, as transformers writes them, and LongChat's recipe on them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.command.cli import compare_command
from lcx.data import BPE, Conversations, Data, TextFiles
from lcx.experiment_file import load
from lcx.huggingface import Pretrained
from lcx.model import LM
from lcx.positions import PositionInterpolation, RoPE, YaRN
from lcx.protocols.measures import token_scores
from lcx.sparsity import Full, Window
from lcx.types import Batch
from tests.parity.against_torch import NEEDED, randomise

torch = pytest.importorskip("torch", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)

ROOT = Path(__file__).parents[2]


def save(folder: Path, kind: str = "llama", **changes):
    settings = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    config = transformers.AutoConfig.for_model(kind, **settings | changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    model.save_pretrained(folder, max_shard_size="20KB")  # several files
    return model


def test_logits_are_transformers_(tmp_path):
    theirs = save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    weights = Pretrained(str(tmp_path))
    assert weights.position == RoPE()
    assert weights.trained_length == 128
    # of a tokenizer of 280 tokens, to whose table 20 rows were added
    tokens = np.random.default_rng(0).integers(0, 280, (2, 50), np.int32)
    logits, expected = both(theirs, weights, tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)  # measured: 3e-6
    # the loss is over all 300
    ids = torch.from_numpy(tokens).long()
    with torch.no_grad():
        loss = theirs(ids, labels=ids).loss.item()
    ours = token_scores(logits[:, :-1], jnp.asarray(tokens[:, 1:])).nll.mean()
    assert float(ours) == pytest.approx(loss, rel=1e-5)


def both(theirs, weights: Pretrained, tokens):
    """Logits of lcx and of transformers."""
    model = weights.model()
    params = weights.load(model)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    return jax.jit(lambda p, t: model(p, Batch(t)))(params, tokens).x, expected


@pytest.mark.parametrize(
    ("kind", "changes", "pattern"),
    [
        ("mistral", {}, (Window(7),)),
        (
            "ministral",
            {
                "layer_types": ["full_attention", "sliding_attention"] * 2,
                "num_hidden_layers": 4,
                "head_dim": 8,
            },
            (Full(), Window(7)),
        ),
    ],
)
def test_a_sliding_window_is_a_window(kind, changes, pattern, tmp_path):
    theirs = save(tmp_path, kind, sliding_window=7, **changes)
    weights = Pretrained(str(tmp_path))
    assert tuple(block.mixer.sparsity for block in weights.model().pattern) == pattern
    tokens = np.random.default_rng(0).integers(0, 300, (2, 50), np.int32)
    logits, expected = both(theirs, weights, tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=4e-5)  # measured: 9e-6
    # another window is another model: what is compared does show it
    theirs.config.sliding_window = 8
    with torch.no_grad():
        wider = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    assert np.abs(wider - expected).max() > 1e-2


def test_a_scaled_model_keeps_its_scaling_unless_told_another(tmp_path):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    save(tmp_path, rope_parameters=yarn | {"rope_theta": 1e4}, tie_word_embeddings=True)
    weights = Pretrained(str(tmp_path))
    model = weights.model()
    assert model.tied
    assert model.pattern[0].mixer.position == RoPE(scaling=YaRN(4.0, original=32))
    other = weights.model(RoPE(scaling=PositionInterpolation(2.0)))
    assert other.pattern[0].mixer.position == RoPE(scaling=PositionInterpolation(2.0))
    weights.check(other)


def test_what_does_not_fit_is_refused(tmp_path):
    save(tmp_path)
    weights = Pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \(300, 32\), .* \(257, 128\)"):
        weights.check(LM())
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "mamba"}, r"'mamba' \(did you mean 'mamba2'\?\); those known are llama"),
        ({"sliding_window": 5}, "sliding_window is 5; only None"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3', and has to be a whole number"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes', and has to be true or false"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "says quantization_config, which lcx does not",
        ),
        ({"rms_norm_eps": 1e-6, "num_hidden_layers": 2}, None),
        ({"head_dim": 7}, "heads of 7 are odd"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        if message is None:  # weights of a third layer are left over
            shallow = Pretrained(str(tmp_path)).model()
            with pytest.raises(ValueError, match=r"model.layers.2.* have no place in the model"):
                Pretrained(str(tmp_path)).check(shallow)
            continue
        with pytest.raises(ValueError, match=message):
            Pretrained(str(tmp_path)).model()
    mistral = config | {"model_type": "mistral", "layer_types": ["sliding_attention"] * 3}
    (tmp_path / "config.json").write_text(json.dumps(mistral))
    with pytest.raises(ValueError, match="layer_types has to name one of full_attention for each"):
        Pretrained(str(tmp_path)).model()


def test_longchat_s_recipe_takes_a_published_model_and_conversations(tmp_path, texts, monkeypatch):
    tokenizer = Data(TextFiles(f"{texts}/*.txt"), BPE(300)).load().tokenizer
    save(tmp_path / "llama", vocab_size=tokenizer.vocab_size + 20)  # padded
    (tmp_path / "llama" / "tokenizer.json").write_text(tokenizer._model.to_str())
    words = [p.read_text(errors="ignore") for p in sorted(texts.glob("*.txt"))]
    chats = [
        {
            "id": f"chat{i}",
            "conversations": [
                {"from": "human", "value": a},
                {"from": "gpt", "value": " ".join(reversed(a.split()))},
            ],
        }
        for i, a in enumerate(words)
    ]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    first = Conversations(str(tmp_path / "chats.json")).documents()[0]
    assert first.text.startswith(b"USER: ")
    assert b"\n\nASSISTANT: " in first.text

    monkeypatch.setenv("LONGCHAT_MODEL", str(tmp_path / "llama"))
    monkeypatch.setenv("LONGCHAT_TEXTS", str(tmp_path / "chats.json"))
    monkeypatch.setenv("LONGCHAT_RATIO", "2")
    file, out = ROOT / "experiments" / "longchat.py", tmp_path / "runs"
    made = load(file).experiments
    assert made["base"].evaluation.contexts == (16, 32, 64, 128, 256)  # from an eighth of 128
    assert made["longchat"].model.pattern[0].mixer.position == RoPE(
        scaling=PositionInterpolation(2.0)
    )
    compare_command(file, out=out, only="longchat", assignments=("train.steps=2",))
    report = json.loads((out / "report" / "SameTargets" / "report.json").read_text())
    assert set(report["variants"]) == {"longchat"}


def test_a_model_that_is_extended_already_is_refused(tmp_path, monkeypatch):
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    save(tmp_path, rope_parameters=linear)
    monkeypatch.setenv("LONGCHAT_MODEL", str(tmp_path))
    with pytest.raises(ValueError, match="a model that is not extended yet is needed"):
        load(ROOT / "experiments" / "longchat.py")
