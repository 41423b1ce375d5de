"""Is a recurrence's time per token flat, and what are its chunks and attention's window worth?

    python benchmarks/mixing.py

Forward and backward in fp32, one row. First, for every mixer but full attention: the time per
token at 65,536 tokens against that at 1,024 (flat: 1). Second, each recurrence's chunked form
against its own token by token, at 8,192 tokens. Third, attention over a window of 512 against the
whole past, at 32,768 tokens. Ratios are of best times in one run; on a shared machine they still
differ by a tenth. Cost: about ten minutes on 2 cores. Name parts to run only these: `flat`,
`chunks`, `window`.
"""

import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from lcx.mixers import MIXERS, SoftmaxAttention
from lcx.ops.attention import attention
from lcx.ops.delta_rule import delta_rule, diagonal_delta_rule
from lcx.ops.gated_linear_attention import gated_linear_attention
from lcx.ops.linear_attention import linear_attention
from lcx.ops.lru import lru
from lcx.ops.wkv import wkv4
from lcx.sparsity import SPARSITIES, Full, Strided
from lcx.types import Context, Dims

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


def flat() -> None:
    """Time per token, long against short, of one layer of width 128."""
    print(f"{'per token at 65,536 against 1,024':40}{'us/token':>10}{'ratio':>8}")
    # strided attention costs T^1.5 by its definition at a fixed stride: T^2 / stride
    sparsities = [s() for s in SPARSITIES.values() if s not in (Full, Strided)]
    mixers = [m() for name, m in MIXERS.items() if name != "SoftmaxAttention"]
    for mixer in mixers + [SoftmaxAttention(sparsity=s) for s in sparsities]:
        with nnx.use_eager_sharding(False):
            params = mixer.init(Dims(128, layers=2), nnx.Rngs(0))

        def per_token(length, mixer=mixer, params=params):
            ctx = Context.of(jnp.arange(length)[None])
            run = jax.jit(jax.grad(lambda p, x: mixer(p, x, ctx)[0].sum(), (0, 1)))
            return best(run, params, normal(1, length, 128)) / length * 1e6

        long, short = per_token(65_536), per_token(1024)
        print(f"{mixer!r:.60}".ljust(60), f"{long:8.2f}{long / short:8.2f}", flush=True)


def by_chunks() -> None:
    """Each op's chunked form against the token by token one."""
    T = 8192
    q, k, v, a = (normal(1, T, H, K, seed=s) for s in range(4))
    unit = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    head, feature = -jax.nn.softplus(normal(1, T, H)), -jax.nn.softplus(normal(1, T, H, K))
    rate, channel = jax.nn.sigmoid(normal(1, T, H)), normal(1, T, H * K)
    ops = {
        "linear_attention": (linear_attention, {"q": q, "k": k, "v": v, "g": head}),
        "gated_linear_attention": (
            gated_linear_attention,
            {"q": q, "k": k, "v": v, "g": feature},
        ),
        "delta_rule": (delta_rule, {"q": q, "k": unit, "v": v, "beta": rate, "g": head}),
        "diagonal_delta_rule": (
            partial(diagonal_delta_rule, strongest=-0.6065),
            {"q": q, "k": k, "v": v, "a": -unit, "b": unit * jax.nn.sigmoid(a), "g": feature},
        ),
        "wkv4": (wkv4, {"w": -jnp.ones(H * K), "u": jnp.ones(H * K), "k": channel, "v": channel}),
        "lru": (lru, {"x": channel, "g": -jax.nn.softplus(channel)}),
    }
    print(f"\n{'chunks against token by token, 8,192':40}{'ms':>10}{'ratio':>8}")
    for name, (op, arguments) in ops.items():

        def run(implementation, op=op, names=tuple(arguments)):
            implementation = implementation or ("parallel" if op is lru else "chunked")

            def f(*args):
                named = dict(zip(names, args, strict=True))
                return op(**named, implementation=implementation)[0]

            return gradients(f)

        fast = best(run(None), *arguments.values())
        plain = best(run("reference"), *arguments.values())
        print(f"{name:40}{1e3 * fast:10.1f}{plain / fast:8.1f}", flush=True)


def window() -> None:
    """Attention over a window against the whole past."""
    q, k, v = (normal(1, 32_768, H, K, seed=s) for s in range(3))
    near = best(gradients(lambda *qkv: attention(*qkv, window=512)[0]), q, k, v)
    whole = best(gradients(lambda *qkv: attention(*qkv)[0]), q, k, v, least=1)
    print(f"\n{'window of 512 against all, 32,768':40}{'ms':>10}{'ratio':>8}")
    print(f"{'attention':40}{1e3 * near:10.1f}{whole / near:8.1f}")


if __name__ == "__main__":
    parts = {"flat": flat, "chunks": by_chunks, "window": window}
    for part in sys.argv[1:] or parts:
        parts[part]()
