"""Folders of peft, read and written, against peft on models of transformers, in fp32."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcx.adapters import LoRA, PrefixTuning, PromptTuning, PTuning
from lcx.adapters.split import begin, frozen, merged, tuned
from lcx.huggingface import Pretrained
from lcx.huggingface.peft import write_adapter
from lcx.huggingface.peft_prompts import write_prompt
from lcx.types import Batch
from tests.parity.against_torch import NEEDED

torch = pytest.importorskip("torch", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)
peft = pytest.importorskip("peft", reason=NEEDED)

pytestmark = [
    # peft asks transformers by its old name, whether checkpointing is on
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
LOGITS = 1e-5  # measured: 2.4e-6, of logits of standard deviation 1
VIRTUAL = 3e-6  # measured: 6e-7, of logits of standard deviation 0.2
MODULES = ["q_proj", "v_proj", "down_proj"]
LLAMA = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 97, "n_embd": 64, "n_head": 4, "n_positions": 64, "n_layer": 2}


def base(tmp_path, tied=False, config=None):
    """A model in transformers, saved, and its folder."""
    torch.manual_seed(0)
    if config is None:
        config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "base")
    return model, tmp_path / "base"


def away(model) -> None:
    """What is trained, away from its first values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


TOKENS = np.random.default_rng(0).integers(0, 97, (2, 40)).astype(np.int32)


def theirs(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def ours(weights: Pretrained) -> np.ndarray:
    model = weights.model()
    return np.asarray(jax.jit(model)(weights.load(model), Batch(jnp.asarray(TOKENS))).x)


@pytest.mark.parametrize(
    ("more", "tied"),
    [
        ({}, True),
        ({"use_rslora": True}, False),
        ({"modules_to_save": ["input_layernorm", "norm", "embed_tokens"]}, False),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    ],
    ids=str,
)
def test_what_peft_has_saved_computes_the_same(tmp_path, more, tied):
    model, folder = base(tmp_path, tied)
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=MODULES, **more)
    tuned = peft.get_peft_model(model, config)
    away(tuned)
    tuned.save_pretrained(tmp_path / "lora")
    expected = theirs(tuned.eval())
    got = ours(Pretrained(str(folder), str(tmp_path / "lora")))
    np.testing.assert_allclose(got, expected, rtol=0, atol=LOGITS)
    assert np.abs(got - ours(Pretrained(str(folder)))).max() > 0.1
    prints = [Pretrained(str(folder), at).fingerprint() for at in (None, str(tmp_path / "lora"))]
    assert prints[0] != prints[1]


def test_fused_and_turned_projections_are_read(tmp_path):
    model, folder = base(tmp_path, config=transformers.GPT2Config(**GPT2))
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    tuned = peft.get_peft_model(model, config)
    away(tuned)
    tuned.save_pretrained(tmp_path / "lora")
    got = ours(Pretrained(str(folder), str(tmp_path / "lora")))
    np.testing.assert_allclose(got, theirs(tuned.eval()), rtol=0, atol=LOGITS)


@pytest.mark.parametrize(
    ("tune", "tied"),
    [
        (LoRA(4, alpha=10.0, of=("q", "v", "channel.down"), norms=True), False),
        (LoRA(4, rank_stabilised=True, of=("mixer",), embeddings=True), True),
    ],
    ids=str,
)
def test_what_is_written_peft_reads(tmp_path, tune, tied):
    _, folder = base(tmp_path, tied)
    weights = Pretrained(str(folder))
    model = weights.model()
    start = weights.load(model)
    trained = begin(tune, model, start, jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 64))
    trained = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), trained)
    write_adapter(tmp_path / "out", model, tune, trained, str(folder))
    plain = merged(tune, model, trained, frozen(tune, model, start))
    expected = np.asarray(jax.jit(model)(plain, Batch(jnp.asarray(TOKENS))).x)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tuned = peft.PeftModel.from_pretrained(again, tmp_path / "out").eval()
    np.testing.assert_allclose(theirs(tuned), expected, rtol=0, atol=LOGITS)
    # and it comes back
    got = ours(Pretrained(str(folder), str(tmp_path / "out")))
    np.testing.assert_allclose(got, expected, rtol=0, atol=LOGITS)


def test_first_values_are_drawn_as_peft_draws_them(tmp_path):
    model, folder = base(tmp_path)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=["q_proj"]))
    drawn = tuned.base_model.model.model.layers[0].self_attn.q_proj.lora_A.default.weight
    weights = Pretrained(str(folder))
    own = LoRA(16, of=("q",)).init(weights.model(), weights.load(weights.model()), nnx.Rngs(0))
    mine = np.asarray(own["blocks.0.mixer.q.lora_a"][...])
    for of in (mine, drawn.detach().numpy()):
        assert 0.97 / 8 < np.abs(of).max() <= 1 / 8
        assert of.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_dora": True}, r"use_dora=True, which lcx does not do"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "is a IA3; read are LORA, PROMPT_TUNING, P_TUNING, PREFIX_TUNING"),
        ({"r": 3}, r"lora_A.weight in .* is \(4, 88\), and the model asks for \(3, 88\)"),
    ],
)
def test_what_is_not_done_is_refused(tmp_path, changed, message):
    model, folder = base(tmp_path)
    config = peft.LoraConfig(r=4, target_modules=MODULES)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    weights = Pretrained(str(folder), str(tmp_path / "lora"))
    with pytest.raises(ValueError, match=message):
        weights.check(weights.model())
    other = replace(weights, adapter=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no .*adapter_config"):
        other.check(other.model())


BASES = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=97, hidden_size=64, n_layer=2, n_head=4, tie_word_embeddings=True
    ),
}
"""Rotary positions and shared keys; vectors of positions; biases by distance."""
CONFIGS = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p-tuning": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=24
    ),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix, network": lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=24
    ),
}


def behind_prompt(model) -> np.ndarray:
    """Logits of the tokens that were given; peft has those of the prompt in front."""
    return theirs(model)[:, -TOKENS.shape[1] :]


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("kind", BASES)
def test_virtual_tokens_that_peft_has_saved_compute_the_same(tmp_path, kind, method):
    model, folder = base(tmp_path, config=BASES[kind]())
    tuned = peft.get_peft_model(model, CONFIGS[method]())
    tuned.save_pretrained(tmp_path / "prompt")
    expected = behind_prompt(tuned.eval())
    weights = Pretrained(str(folder), str(tmp_path / "prompt"))
    got = ours(weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol=VIRTUAL)
    assert np.abs(got - ours(Pretrained(str(folder)))).max() > 0.01
    assert weights.fingerprint() != Pretrained(str(folder)).fingerprint()


@pytest.mark.parametrize(
    "tune", [PromptTuning(5), PTuning(5, hidden=24), PrefixTuning(5), PrefixTuning(5, hidden=24)]
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_virtual_tokens_that_are_written_peft_reads(tmp_path, kind, tune):
    _, folder = base(tmp_path, config=BASES[kind]())
    weights = Pretrained(str(folder))
    model = weights.model()
    start = weights.load(model)
    trained = begin(tune, model, start, jax.random.key(1))
    write_prompt(tmp_path / "out", model, tune, trained, str(folder))
    whole = tuned(tune, model, trained, frozen(tune, model, start))
    expected = np.asarray(jax.jit(model)(whole, Batch(jnp.asarray(TOKENS))).x)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    got = behind_prompt(peft.PeftModel.from_pretrained(again, tmp_path / "out").eval())
    np.testing.assert_allclose(got, expected, rtol=0, atol=VIRTUAL)
    # and they come back
    back = ours(Pretrained(str(folder), str(tmp_path / "out")))
    np.testing.assert_allclose(back, expected, rtol=0, atol=VIRTUAL)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\], which lcx does not"),
        ({"num_transformer_submodules": 2}, "of an encoder and a decoder"),
        ({"num_virtual_tokens": 4}, r"is \(5, 64\), and the model asks for \(4, 64\)"),
        ({"peft_type": "PREFIX_TUNING"}, r"is \(5, 64\), and the model asks for \(5, 128\)"),
    ],
    ids=str,
)
def test_virtual_tokens_that_do_not_fit_are_refused(tmp_path, changed, message):
    model, folder = base(tmp_path)
    peft.get_peft_model(model, CONFIGS["prompt"]()).save_pretrained(tmp_path / "prompt")
    path = tmp_path / "prompt" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    weights = Pretrained(str(folder), str(tmp_path / "prompt"))
    with pytest.raises(ValueError, match=message):
        weights.check(weights.model())


def test_virtual_tokens_beside_windows_are_refused(tmp_path):
    """Peft's leave a window, and those here never do."""
    config = transformers.MistralConfig(**LLAMA, sliding_window=8)
    model, folder = base(tmp_path, config=config)
    peft.get_peft_model(model, CONFIGS["prefix"]()).save_pretrained(tmp_path / "prefix")
    weights = Pretrained(str(folder), str(tmp_path / "prefix"))
    with pytest.raises(ValueError, match="virtual tokens leave a Window, and here every token"):
        weights.check(weights.model())
    tune, model = PrefixTuning(5), Pretrained(str(folder)).model()
    trained = begin(tune, model, Pretrained(str(folder)).load(model), jax.random.key(1))
    with pytest.raises(ValueError, match="virtual tokens leave a Window"):
        write_prompt(tmp_path / "out", model, tune, trained, str(folder))
