"""How fast is text written, against transformers' `generate` with models of the same shape?

Greedy, fp32, all cores, a prompt of 128 tokens and 512 new ones, in batches of 1 and 8; the two
take turns, and the fastest of each counts; a ratio above 1 says that lcx is faster. The time of the
prompt and 16 tokens is told apart. Then the time of a token as texts grow: flat for recurrences and
windows, growing with the cache for attention to everything.

    pip install -e '.[parity]' && python -m benchmarks.decoding
"""

import os
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers

from benchmarks.turns import fastest
from lcx.block import Block
from lcx.command.start import huge_pages
from lcx.generate import Generator
from lcx.layers import LayerNorm, RWKVChannelMix, SwiGLU
from lcx.mixers import RWKV4, Mamba2, SoftmaxAttention
from lcx.model import LM
from lcx.positions import ALiBi
from lcx.sparsity import Window

WIDTH, LAYERS, VOCAB, PROMPT, NEW = 256, 4, 1024, 128, 512
LLAMA = LM(VOCAB, WIDTH, (Block(SoftmaxAttention(heads=4), SwiGLU(704)),), LAYERS)
MODELS: dict[str, LM] = {
    "llama": LLAMA,
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
    "mamba2": LM(VOCAB, WIDTH, (Block(Mamba2()),), LAYERS),
    "rwkv4": MODELS["rwkv4"],
}


def theirs(name: str) -> torch.nn.Module:
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": None}
    if name == "rwkv4":
        config = transformers.RwkvConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, rescale_every=0, **ends
        )
        return transformers.RwkvForCausalLM(config).eval()
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


def writes(model: LM) -> Callable[[np.ndarray, int], None]:
    params = jax.jit(model.init)(jax.random.key(0))
    generator = Generator(model, params)
    return lambda tokens, new: [*generator.write(list(tokens), new)] and None


def measure(name: str, batch: int) -> None:
    """Print the row of one model and batch."""
    tokens = np.random.default_rng(0).integers(1, VOCAB, (batch, PROMPT)).astype(np.int32)
    module, ours = theirs(name), writes(MODELS[name])
    prompt = torch.from_numpy(tokens).long()

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

    slow, fast, slow1, fast1 = fastest(
        lambda: torchs(NEW), lambda: ours(tokens, NEW), lambda: torchs(16), lambda: ours(tokens, 16)
    )
    each = batch * (NEW - 16)
    rates = each / (slow - slow1), each / (fast - fast1)
    print(
        f"{name:6s} batch {batch}: torch {rates[0]:8,.0f} tokens/s, lcx {rates[1]:8,.0f}, "
        f"ratio {rates[1] / rates[0]:.1f}; prompt and 16 tokens: {1e3 * slow1:.0f} and "
        f"{1e3 * fast1:.0f} ms, ratio {slow1 / fast1:.1f}"
    )


def grows(name: str, model: LM, lengths: tuple[int, ...] = (1024, 4096, 16384)) -> None:
    """Print the time of a token after texts of these lengths."""
    ours, shown = writes(model), []
    for length in lengths:
        tokens = np.random.default_rng(0).integers(1, VOCAB, (1, length - 144)).astype(np.int32)
        times = {}
        for new in (16, 144):
            ours(tokens, new)
            best = np.inf
            for _ in range(3):
                began = time.perf_counter()
                ours(tokens, new)
                best = min(best, time.perf_counter() - began)
            times[new] = best
        shown.append(f"{1e3 * (times[144] - times[16]) / 128:.2f}")
    print(f"{name:20s} ms a token after {lengths}: {', '.join(shown)}")


if __name__ == "__main__":
    huge_pages()
    for model_name in MODELS:
        for rows in (1, 8):
            measure(model_name, rows)
    for model_name, each_model in GROWING.items():
        grows(model_name, each_model)
