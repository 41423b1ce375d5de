"""How fast is text written, against transformers' `generate` with models of the same shape?

Greedy, fp32, all cores, a prompt of 128 tokens and 512 new ones, in batches of 1 and 8; the two
take turns, and the fastest of each counts; a ratio above 1 says that lcx is faster. The time of the
prompt and 16 tokens is told apart. Then the time of a token as texts grow: flat for recurrences and
windows, growing with the cache for attention to everything. About six minutes on two cores; only
the rows of the models that are named, where some are.

    pip install -e '.[parity]' && python -m benchmarks.decoding [llama falcon ...]
"""

import os
import sys
import time

import jax
import numpy as np
import torch
import transformers

from benchmarks.turns import fastest
from lcx.block import Block
from lcx.command.start import huge_pages
from lcx.generate import STEPS, Generator
from lcx.layers import MLP, LayerNorm, RWKVChannelMix, SwiGLU
from lcx.mixers import RWKV4, Mamba2, SoftmaxAttention
from lcx.model import LM
from lcx.positions import ALiBi
from lcx.sparsity import Window

WIDTH, LAYERS, VOCAB, PROMPT, NEW = 256, 4, 1024, 128, 512
LLAMA = LM(VOCAB, WIDTH, (Block(SoftmaxAttention(heads=4), SwiGLU(704)),), LAYERS)
MODELS: dict[str, LM] = {
    "llama": LLAMA,
    "falcon": LM(
        VOCAB,
        WIDTH,
        (Block(SoftmaxAttention(heads=4, kv_heads=1), MLP(), LayerNorm()),),
        LAYERS,
        norm=LayerNorm(),
    ),
    # as published: mixers alone, two of them to a block
    "mamba2": LM(VOCAB, WIDTH, (Block(Mamba2(), Mamba2()),), LAYERS // 2),
    "rwkv4": LM(
        VOCAB,
        WIDTH,
        (Block(RWKV4(), RWKVChannelMix(), LayerNorm()),),
        LAYERS,
        tied=False,
        norm=LayerNorm(),
        embed_norm=LayerNorm(),
    ),
}
GROWING: dict[str, LM] = {
    "attention": LLAMA,
    "window of 256": LM(
        VOCAB, WIDTH, (Block(SoftmaxAttention(heads=4, sparsity=Window(256)), SwiGLU(704)),), LAYERS
    ),
    "multi-query, ALiBi": LM(
        VOCAB,
        WIDTH,
        (Block(SoftmaxAttention(heads=4, kv_heads=1, position=ALiBi()), SwiGLU(704)),),
        LAYERS,
    ),
    "mamba2": MODELS["mamba2"],
    "rwkv4": MODELS["rwkv4"],
}


DEVICE = "cuda" if jax.default_backend() == "gpu" else "cpu"


def theirs(name: str) -> torch.nn.Module:
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": None}
    if name == "rwkv4":
        config = transformers.RwkvConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, rescale_every=0, **ends
        )
        return transformers.RwkvForCausalLM(config).eval()
    if name == "falcon":
        config = transformers.FalconConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            multi_query=True,
            parallel_attn=False,
            new_decoder_architecture=False,
            alibi=False,
            bias=False,
            attn_implementation="sdpa",
            **ends,
        )
        return transformers.FalconForCausalLM(config).eval()
    if name == "mamba2":
        config = transformers.Mamba2Config(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_heads=8,
            head_dim=64,
            state_size=128,
            n_groups=1,
            tie_word_embeddings=True,
            **ends,
        )
        return transformers.Mamba2ForCausalLM(config).eval()
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=704,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        **ends,
    )
    return transformers.LlamaForCausalLM(config).eval()


def generator(model: LM) -> Generator:
    return Generator(model, jax.jit(model.init)(jax.random.key(0)))


def measure(name: str, batch: int) -> None:
    """Print the row of one model and batch."""
    tokens = np.random.default_rng(0).integers(1, VOCAB, (batch, PROMPT)).astype(np.int32)
    module, generates = theirs(name).to(DEVICE), generator(MODELS[name])
    prompt = torch.from_numpy(tokens).long().to(DEVICE)

    def torchs(new: int) -> None:
        with torch.no_grad():
            module.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )

    def ours(new: int) -> None:
        generates.write(list(tokens), new)

    calls = lambda: torchs(NEW), lambda: ours(NEW), lambda: torchs(16), lambda: ours(16)
    slow, fast, slow1, fast1 = fastest(*calls, rounds=3, each=1)
    each = batch * (NEW - 16)
    rates = each / (slow - slow1), each / (fast - fast1)
    print(
        f"{name:6s} batch {batch}: torch {rates[0]:8,.0f} tokens/s, lcx {rates[1]:8,.0f}, "
        f"ratio {rates[1] / rates[0]:.1f}; prompt and 16 tokens: {1e3 * slow1:.0f} and "
        f"{1e3 * fast1:.0f} ms, ratio {slow1 / fast1:.1f}",
        flush=True,
    )


def grows(name: str, model: LM, lengths: tuple[int, ...] = (1024, 4096, 16384 - 256)) -> None:
    """Print the time of a token after texts of these lengths."""
    writes, shown = generator(model), []
    for length in lengths:
        tokens = np.random.default_rng(0).integers(1, VOCAB, length).astype(np.int32)
        pieces, times = writes.stream([tokens], 160), []
        next(pieces)  # the prompt, and what is compiled
        while True:
            began = time.perf_counter()
            if next(pieces, None) is None:
                break
            times.append(time.perf_counter() - began)
        shown.append(f"{1e3 * min(times) / STEPS:.2f}")
    print(f"{name:20s} ms a token after {lengths}: {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    huge_pages()
    named = sys.argv[1:]
    for model_name in named or MODELS:
        for rows in (1, 8):
            measure(model_name, rows)
    if not named:
        for model_name, each_model in GROWING.items():
            grows(model_name, each_model)
