"""Is a recurrence's time per token flat, and what are its chunks and attention's window worth?

    python benchmarks/mixing.py

Forward and backward in fp32, one row, 2 heads of 64. First, of every recurrence and of attention to
a bounded number of keys: the time per token at 65,536 tokens against that at 1,024 (flat: 1).
Second, each recurrence's chunked form against its own token by token, at 8,192 tokens. Third,
attention over a window of 512 against the whole past, at 32,768 tokens. Fourth, attention under
each position scheme against none, at 4,096 tokens, and ALiBi as jax's own attention has it, with a
bias of T x T. Ratios are of best times in
one run; on a shared machine they still differ by a tenth. Cost: about four minutes on 2 cores. Name
parts to run only these: `flat`, `chunks`, `window`, `positions`.
"""

import sys
import time
from functools import partial

import jax
import jax.numpy as jnp

from lcx.command.start import huge_pages
from lcx.kernels import FASTEST_THERE_IS, Kernels
from lcx.ops.attention import attention
from lcx.ops.delta_rule import delta_rule, diagonal_delta_rule
from lcx.ops.gated_linear_attention import gated_linear_attention
from lcx.ops.linear_attention import linear_attention
from lcx.ops.lru import lru
from lcx.ops.wkv import wkv4
from lcx.positions import ALiBi, DynamicNTK, NoPE, RoPE, XPos
from lcx.sparsity import Full, Request, SelfExtend, ShiftedGroups, TopBlocks, Window
from lcx.spec import describe
from lcx.types import Context

H, K = 2, 64


def best(call, *args, least=3, seconds=1.0) -> float:
    """Seconds of the fastest call, of at least three and one second of them."""
    jax.block_until_ready(call(*args))
    times, begin = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def gradients(f):
    """Compiled gradients of the sum of f's output, by all arguments."""
    return jax.jit(lambda *args: jax.grad(lambda *a: f(*a).sum(), range(len(args)))(*args))


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def rates(*shape, seed=0):
    """Log-decays of about -0.8 a token."""
    return -jax.nn.softplus(normal(*shape, seed=seed))


def recurrences(T: int) -> dict:
    """Each op and its arguments, for one row of T tokens."""
    q, k, v, a = (normal(1, T, H, K, seed=s) for s in range(4))
    unit = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    channel, rate = normal(1, T, H * K), jax.nn.sigmoid(normal(1, T, H))
    qkv, head, feature = {"q": q, "k": k, "v": v}, rates(1, T, H), rates(1, T, H, K)
    replaced = {"a": -unit, "b": unit * jax.nn.sigmoid(a), "g": 0.6 * jnp.tanh(feature)}
    return {
        "linear_attention": (linear_attention, qkv | {"g": head}),
        "gated_linear_attention": (gated_linear_attention, qkv | {"g": feature}),
        "delta_rule": (delta_rule, qkv | {"k": unit, "beta": rate, "g": head}),
        "diagonal_delta_rule": (
            partial(diagonal_delta_rule, min_log_decay=-0.6065),
            qkv | replaced,
        ),
        "wkv4": (wkv4, {"w": -jnp.ones(H * K), "u": jnp.ones(H * K), "k": channel, "v": channel}),
        "lru": (lru, {"x": channel, "g": rates(1, T, H * K)}),
    }


def seconds(op, arguments, kernels=FASTEST_THERE_IS) -> float:
    """Of the forward and backward pass, by all arguments."""

    def f(*args):
        named = dict(zip(arguments, args, strict=True))
        return op(**named, kernels=kernels)[0]

    return best(gradients(f), *arguments.values())


def flat() -> None:
    """Time per token, long against short."""
    print(f"{'per token at 65,536 against 1,024':40}{'us/token':>10}{'ratio':>8}")

    def show(name, per_token):
        long, short = (1e6 * per_token(T) / T for T in (65_536, 1024))
        print(f"{name:40}{long:10.2f}{long / short:8.2f}", flush=True)

    for name in recurrences(1):
        show(name, lambda T, name=name: seconds(*recurrences(T)[name]))
    for sparsity in (Window(256), ShiftedGroups(256), TopBlocks(64)):

        def attend(T, sparsity=sparsity):
            ctx = Context.of(jnp.arange(T)[None])
            run = gradients(lambda *qkv: sparsity(Request(*qkv, ctx, NoPE())).o)
            return best(run, *(normal(1, T, H, K, seed=s) for s in range(3)))

        show(repr(sparsity), attend)


def by_chunks() -> None:
    """Each op's fast form against the token by token one."""
    print(f"\n{'fast form against token by token, 8,192':40}{'ms':>10}{'ratio':>8}")
    for name, (op, arguments) in recurrences(8192).items():
        fast = seconds(op, arguments, Kernels("xla"))
        plain = seconds(op, arguments, Kernels("reference"))
        print(f"{name:40}{1e3 * fast:10.1f}{plain / fast:8.1f}", flush=True)


def window() -> None:
    """Attention over a window against the whole past."""
    q, k, v = (normal(1, 32_768, H, K, seed=s) for s in range(3))
    near = best(gradients(lambda *qkv: attention(*qkv, window=512)[0]), q, k, v)
    whole = best(gradients(lambda *qkv: attention(*qkv)[0]), q, k, v, least=1)
    print(f"\n{'window of 512 against all, 32,768':40}{'ms':>10}{'ratio':>8}")
    print(f"{'attention':40}{1e3 * near:10.1f}{whole / near:8.1f}")


def positions() -> None:
    """Attention under each scheme against none."""
    T = 4096
    ctx = Context.of(jnp.arange(T)[None], lengths=jnp.full((1, T), T))
    qkv = tuple(normal(1, T, H, K, seed=s) for s in range(3))

    def attend(position, sparsity):
        return gradients(lambda *qkv: sparsity(Request(*qkv, ctx, position)).o)

    def jax_alibi(q, k, v):
        at = jnp.arange(T)
        slopes = jnp.array(ALiBi().slopes(H))[:, None, None]
        bias = (-slopes * (at[:, None] - at)[None]).astype(q.dtype)
        return jax.nn.dot_product_attention(q, k, v, bias=bias[None], is_causal=True)

    none = best(attend(NoPE(), Full()), *qkv)
    print(f"\n{'a scheme against none, 4,096':40}{'ms':>10}{'ratio':>8}")
    print(f"{'NoPE()':40}{1e3 * none:10.1f}{1:8.2f}")
    dynamic = RoPE(scaling=DynamicNTK(1024))
    forms = {describe(p): attend(p, Full()) for p in (RoPE(), ALiBi(), XPos())}
    forms |= {"dynamic NTK": attend(dynamic, Full()), "SelfExtend": attend(RoPE(), SelfExtend())}
    for name, form in (forms | {"ALiBi, jax.nn, bias of T x T": gradients(jax_alibi)}).items():
        took = best(form, *qkv)
        print(f"{name:40}{1e3 * took:10.1f}{took / none:8.2f}", flush=True)


if __name__ == "__main__":
    huge_pages()
    parts = {"flat": flat, "chunks": by_chunks, "window": window, "positions": positions}
    for part in sys.argv[1:] or parts:
        parts[part]()
