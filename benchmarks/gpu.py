"""How fast are operations and training steps on one GPU, against what a user would otherwise pick?

    python -m benchmarks.gpu                      # all parts, about six minutes on an H100
    python -m benchmarks.gpu attention steps      # these

bf16, whole tensors of 32,768 tokens, 16 heads of 64. `attention`: softmax attention against torch's
flash attention and against jax's own by cuDNN. `recurrences`: each op against the Triton kernel of
flash-linear-attention that computes the same, where it is installed (pip install
flash-linear-attention). Both forward and backward, milliseconds; first the outputs are compared.
`steps`: a training step of models of 12 layers of 768, by mixer, and Llama in transformers with
bf16 autocast. A ratio above 1: lcx is faster.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch wants memory, too

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lcx.block import Block
from lcx.cost import training_flops
from lcx.experiment import Experiment
from lcx.layers import RWKVChannelMix, SwiGLU
from lcx.mixers import GLA, RGLRU, RWKV4, RWKV6, RWKV7, GatedDeltaNet, Mamba2, SoftmaxAttention
from lcx.model import LM, count_parameters
from lcx.ops.attention import attention
from lcx.ops.delta_rule import delta_rule, diagonal_delta_rule
from lcx.ops.gated_linear_attention import gated_linear_attention
from lcx.ops.linear_attention import linear_attention
from lcx.ops.lru import lru
from lcx.ops.wkv import wkv4
from lcx.optim import AdamW
from lcx.sparsity import Window
from lcx.training.loop import TrainState, make_step
from lcx.types import Batch, Policy

TOKENS, HEADS, K = 32_768, 16, 64
VOCAB, WIDTH, LAYERS, LENGTH = 32_768, 768, 12, 2048
PEAK = 989e12
"""bf16 FLOP a second of an H100 or H200 (SXM), by the datasheet."""


def best(call: Callable, wait: Callable, rounds: int = 12) -> float:
    """Milliseconds of the fastest call, after two."""
    times = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        wait(call())
        times.append(time.perf_counter() - began)
    return 1e3 * min(times[2:])


def jaxs(call: Callable) -> float:
    return best(call, jax.block_until_ready)


def torchs(call: Callable) -> float:
    return best(call, lambda _: torch.cuda.synchronize())


def passes(op: Callable, named: dict[str, jax.Array]) -> tuple[float, float, jax.Array]:
    """Milliseconds of the forward pass, and of both; the output."""
    gradient = jax.jit(jax.grad(lambda named: op(**named).astype(jnp.float32).sum()))
    forward = jax.jit(lambda named: op(**named))
    # what a model in bf16 asks for its fp32 products
    with jax.default_matmul_precision("tensorfloat32"):
        return jaxs(lambda: forward(named)), jaxs(lambda: gradient(named)), forward(named)


def torch_passes(op: Callable, named: dict[str, jax.Array]) -> tuple[float, float, np.ndarray]:
    """The same of torch, given the same arrays."""
    given = {n: torch.tensor(np.asarray(a, np.float32)).cuda() for n, a in named.items()}
    given = {n: x if named[n].dtype == jnp.float32 else x.bfloat16() for n, x in given.items()}
    for x in given.values():
        x.requires_grad_()

    def both():
        return torch.autograd.grad(op(**given).float().sum(), list(given.values()))

    with torch.no_grad():
        out = op(**given).float().cpu().numpy()
        forward = torchs(lambda: op(**given))
    return forward, torchs(both), out


def normal(*shape: int, seed: int = 0, dtype=jnp.bfloat16) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def row(name: str, ours: tuple, theirs: tuple | None) -> None:
    """Print times, ratios, and by how much the outputs differ of their size."""
    said = f"{name:40} lcx {ours[0]:8.2f} {ours[1]:8.2f}"
    if theirs is not None:
        a, b = (np.asarray(x[2], np.float32) for x in (ours, theirs))
        apart = np.linalg.norm(a - b) / np.linalg.norm(b)
        said += f"   other {theirs[0]:8.2f} {theirs[1]:8.2f}"
        said += (
            f"   ratio {theirs[0] / ours[0]:5.2f} {theirs[1] / ours[1]:5.2f}   apart {apart:.1e}"
        )
    print(said, flush=True)


def of_attention() -> None:
    print(f"softmax attention, {TOKENS:,} tokens, {HEADS} heads of {K}, bf16: ms forward, and both")

    def torch_flash(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def cudnn(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")

    for length in (2048, 8192, 32768):
        shape = (TOKENS // length, length, HEADS, K)
        qkv = {name: normal(*shape, seed=i) for i, name in enumerate("qkv")}
        ours = passes(lambda q, k, v: attention(q, k, v)[0], qkv)
        row(f"T {length}, torch's flash", ours, torch_passes(torch_flash, qkv))
        row(f"T {length}, jax's cudnn", ours, passes(cudnn, qkv))
        window = passes(lambda q, k, v: attention(q, k, v, window=512)[0], qkv)
        row(f"T {length}, window of 512", window, None)


def of_recurrences() -> None:
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gla import chunk_gla
        from fla.ops.rwkv6 import chunk_rwkv6
        from fla.ops.rwkv7 import chunk_rwkv7
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        chunk_gated_delta_rule = chunk_gla = chunk_rwkv6 = chunk_rwkv7 = chunk_simple_gla = None
    print(f"recurrences, {TOKENS:,} tokens, {HEADS} heads of {K}, bf16: ms forward, and both")
    for length in (2048, 32768):
        batch = TOKENS // length
        q, k, v, a = (normal(batch, length, HEADS, K, seed=s) for s in range(4))
        k = (k / jnp.linalg.norm(k.astype(jnp.float32), axis=-1, keepdims=True)).astype(k.dtype)
        gate = normal(batch, length, HEADS, K, seed=5, dtype=jnp.float32)
        rate = -jax.nn.softplus(gate - 2)
        u = normal(HEADS, K, seed=6)
        channel = v.reshape(batch, length, -1)
        qkv = {"q": q, "k": k, "v": v}
        beta = jax.nn.sigmoid(a[..., 0])
        replaced = {"a": -k, "b": k * jax.nn.sigmoid(a), "g": -0.6065 * jax.nn.sigmoid(gate)}
        ops: dict[str, tuple[Callable, Callable | None, Callable | None, dict]] = {
            "linear attention": (
                linear_attention,
                chunk_simple_gla,
                lambda q, k, v, g: chunk_simple_gla(q, k, v, g=g, scale=1.0)[0],
                qkv | {"g": rate[..., 0]},
            ),
            "gated linear attention": (
                gated_linear_attention,
                chunk_gla,
                lambda q, k, v, g: chunk_gla(q, k, v, g, scale=1.0)[0],
                qkv | {"g": rate},
            ),
            "the same with a bonus": (
                gated_linear_attention,
                chunk_rwkv6,
                lambda q, k, v, g, bonus: chunk_rwkv6(q, k, v, g, bonus, scale=1.0)[0],
                qkv | {"g": rate, "bonus": u},
            ),
            "delta rule": (
                delta_rule,
                chunk_gated_delta_rule,
                lambda q, k, v, beta, g: chunk_gated_delta_rule(q, k, v, g, beta, scale=1.0)[0],
                qkv | {"beta": beta, "g": rate[..., 0]},
            ),
            "diagonal delta rule": (
                lambda **named: diagonal_delta_rule(**named, min_log_decay=-0.6065),
                chunk_rwkv7,
                lambda q, k, v, a, b, g: chunk_rwkv7(q, g, k, v, a, b, scale=1.0)[0],
                qkv | replaced,
            ),
            "lru": (lru, None, None, {"x": channel, "g": rate.reshape(batch, length, -1)}),
            "wkv4": (
                wkv4,
                None,
                None,
                {"w": -jnp.ones(HEADS * K), "u": jnp.ones(HEADS * K), "k": channel, "v": channel},
            ),
        }
        for name, (op, there, theirs, named) in ops.items():
            ours = passes(lambda op=op, **named: op(**named)[0], named)
            other = torch_passes(theirs, named) if there is not None else None
            row(f"{name}, T {length}", ours, other)


def llama_step(batch: int) -> float:
    """Milliseconds of a step in transformers."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // K,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).cuda()
    model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, VOCAB, (batch, LENGTH)).cuda()

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    took = torchs(step)
    torch.cuda.empty_cache()
    return took


def compiled(model: LM, batch: int) -> tuple[Any, float]:
    """A training step, and gigabytes at its peak."""
    optimizer = OPTIMIZER.transform(1000)
    given = jax.eval_shape(partial(beginning, model, batch))
    step = jax.jit(make_step(replace(Experiment(), model=model), optimizer), donate_argnums=0)
    step = step.lower(*given).compile()
    memory = step.memory_analysis()
    return step, (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30


OPTIMIZER = AdamW(peak=1e-4, warmup=0, schedule="constant")


def beginning(model: LM, batch: int) -> tuple[TrainState, Batch]:
    key = jax.random.key(0)
    params = model.init(key)
    state = TrainState(params, OPTIMIZER.transform(1000).init(params), jnp.zeros((), jnp.int32))
    tokens = jax.random.randint(key, (batch, LENGTH), 0, VOCAB)
    position = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    return state, Batch(
        tokens, position, jnp.ones_like(position), targets=jnp.roll(tokens, -1, axis=1)
    )


def lcx_step(step: Any, model: LM, batch: int) -> float:
    """Milliseconds of a step."""
    state, given = jax.jit(partial(beginning, model, batch))()

    def once():
        nonlocal state
        state, metrics = step(state, given)
        return metrics["loss"]

    return jaxs(once)


def step_models() -> dict[str, LM]:
    heads, mlp = WIDTH // K, SwiGLU(2048)
    softmax = Block(SoftmaxAttention(heads=heads), mlp)
    window = Block(SoftmaxAttention(heads=heads, sparsity=Window(512)), mlp)
    half = Policy(compute="bfloat16")
    xla = replace(half, kernels="xla")
    pairs = {
        "softmax": (softmax, half),
        "softmax, by XLA": (softmax, xla),
        "softmax, by XLA, fp32 products": (softmax, replace(xla, products="float32")),
        "window of 512": (window, half),
        "window of 512, by XLA": (window, xla),
        "Mamba-2": (Block(Mamba2(), mlp), half),
        "Gated DeltaNet": (Block(GatedDeltaNet(heads=heads // 2), mlp), half),
        "GLA": (Block(GLA(heads=heads), mlp), half),
        "RG-LRU": (Block(RGLRU(), mlp), half),
        "RWKV-4": (Block(RWKV4(), RWKVChannelMix()), half),
        "RWKV-6": (Block(RWKV6(), RWKVChannelMix()), half),
        "RWKV-7": (Block(RWKV7(), RWKVChannelMix()), half),
    }
    return {
        name: LM(VOCAB, WIDTH, (block,), LAYERS, policy=policy)
        for name, (block, policy) in pairs.items()
    }


def of_step(name: str, model: LM, batch: int) -> None:
    step, peak = compiled(model, batch)
    took = lcx_step(step, model, batch)
    tokens = batch * LENGTH
    flops = (training_flops(model, LENGTH) or 0.0) * tokens
    print(
        f"{name:30} {took:8.1f} ms  {1e3 * tokens / took:10,.0f} tokens/s  "
        f"{flops / (took * 1e-3) / PEAK:5.0%} of peak  {peak:5.1f} GiB  "
        f"{count_parameters(model) / 1e6:.0f} M parameters",
        flush=True,
    )


def of_steps() -> None:
    batch = TOKENS // LENGTH
    print(f"steps: d {WIDTH}, {LAYERS} layers, vocabulary {VOCAB}, T {LENGTH}, B {batch}, bf16")
    took = llama_step(batch)
    rate = 1e3 * TOKENS / took
    print(f"Llama in transformers, compiled: {took:.1f} ms, {rate:,.0f} tokens/s")
    for name, model in step_models().items():
        of_step(name, model, batch)


PARTS = {"attention": of_attention, "recurrences": of_recurrences, "steps": of_steps}

if __name__ == "__main__":
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}")
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
