"""The fused form of softmax attention on a GPU: is it right, how fast is it, which blocks are best?

    python -m benchmarks.fused_attention                    # all three
    python -m benchmarks.fused_attention check times        # these
    python -m benchmarks.fused_attention sweep 64 8192      # by the width of heads and the length

`check`: how far the fused form and the one by XLA are from the plain one in fp32, of its size, in
output, logsumexp and gradients. `times`: milliseconds of both, forward and with gradients, of
32,768 tokens and 16 heads. `sweep`: milliseconds of each of the three kernels by its blocks
(queries x keys, warps, stages); those of the backward pass with a forward pass.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcx.ops.attention import _reference
from lcx.ops.blockwise import blockwise
from lcx.ops.fused_attention import TUNED, fused
from lcx.ops.fused_kernels import Blocks
from lcx.ops.tiles import Scoring

TOKENS, HEADS = 32_768, 16
NAMES = ("o", "lse", "dq", "dk", "dv")


def arrays(B=2, T=1000, S=None, G=4, R=1, K=64, V=None, dtype=jnp.bfloat16):
    S, V = S or T, V or K
    shapes = (B, T, G, R, K), (B, S, G, K), (B, S, G, V), (B, T, G, R, V)
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def all_of(form: Callable, q, k, v, do):
    (o, lse), pull = jax.vjp(form, q, k, v)
    dlse = jnp.sin(jnp.arange(lse.size, dtype=lse.dtype)).reshape(lse.shape)
    return o, lse, *pull((do, dlse))


def marks(B: int, T: int, S: int):
    rng = np.random.default_rng(0)
    segments = np.cumsum(rng.random((B, S)) < 0.004, axis=1).astype(np.int32)
    positions = (2**24 + np.cumsum(rng.integers(1, 3, (B, S)), axis=1)).astype(np.int32)
    return tuple((jnp.asarray(x[:, S - T :]), jnp.asarray(x)) for x in (segments, positions))


FP32 = {"dtype": jnp.float32}
CASES: dict[str, tuple[dict, dict]] = {
    "whole past": ({"T": 1024}, {}),
    "ragged": ({}, {}),
    "fp32": (FP32, {}),
    "fp32, TF32": (FP32, {"products": "tensorfloat32"}),
    "window": ({"T": 1024}, {"window": 200}),
    "softcap": ({}, {"softcap": 2.0}),
    "segments": ({}, {"packed": True}),
    "ALiBi, 2 heads a KV head": ({"R": 2}, {"slopes": True}),
    "multi-query": ({"G": 1, "R": 8}, {}),
    "an offset at run time": ({"T": 300, "S": 1500}, {"offset": 1200}),
    "no keys at first": ({"T": 300, "S": 500}, {"offset": -70, "window": 150}),
    "everything": (
        {"T": 300, "S": 1500, "R": 2, "K": 48, "V": 64},
        {"offset": 1200, "window": 170, "softcap": 2.0, "packed": True, "slopes": True},
    ),
    "heads of 16": ({"K": 16}, {}),
    "heads of 128": ({"K": 128}, {}),
    "heads of 256": ({"K": 256}, {}),
}


def check(of: slice = slice(None)) -> None:
    print(f"errors against fp32, fused / by XLA: {', '.join(NAMES)}")
    for name in list(CASES)[of]:
        errors = errors_of(*CASES[name])
        said = "  ".join(f"{a:.0e}/{b:.0e}" for a, b in zip(*errors, strict=True))
        bad = any(not a <= 2 * b + 1e-6 for a, b in zip(*errors, strict=True))
        print(f"{name:26} {said}{'   WRONG' if bad else ''}", flush=True)


def errors_of(shape: dict, options: dict) -> list[list[float]]:
    """Of both forms, for `NAMES`."""
    given = arrays(**shape)
    (B, T, G, R, K), S = given[0].shape, given[1].shape[1]
    packed, at = marks(B, T, S)
    segments = packed if "packed" in options else None
    positions = at if "slopes" in options else None
    slopes = tuple(2.0 ** -(h % 8 + 1) for h in range(G * R)) if positions else None
    scoring = Scoring(K**-0.5, options.get("window"), options.get("softcap"), slopes)
    offset = jnp.int32(options.get("offset", 0))

    def run(form, *given):
        bound = lambda q, k, v: form(q, k, v, given[4], scoring, segments, positions)  # noqa: E731
        return all_of(bound, *given[:4])

    with jax.default_matmul_precision("float32"):
        exact = [x.astype(jnp.float32) for x in given]
        wanted = jax.jit(partial(run, _reference))(*exact, offset)
    with jax.default_matmul_precision(options.get("products", "float32")):
        return [
            [float(apart(*pair)) for pair in zip(got, wanted, strict=True)]
            for got in (jax.jit(partial(run, form))(*given, offset) for form in (fused, blockwise))
        ]


@jax.jit
def apart(got, wanted):
    got = got.astype(jnp.float32)
    return jnp.abs(got - wanted).max() / jnp.maximum(jnp.abs(wanted).max(), 1e-9)


def milliseconds(call: Callable, given: list, rounds: int = 3, calls: int = 8) -> float:
    jax.block_until_ready(call(*given))
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready([call(*given) for _ in range(calls)])
        took.append(time.perf_counter() - began)
    return 1e3 * min(took) / calls


def passes(form: Callable, given: list, window: int | None = None, by=(0, 1, 2)) -> list:
    """Compiled: the forward pass, and with it the gradients by these arguments."""
    scoring = Scoring(given[0].shape[-1] ** -0.5, window, None)

    def forward(q, k, v, do):
        return form(q, k, v, 0, scoring, None, None)

    def both(q, k, v, do):
        return jax.grad(lambda *qkv: jnp.vdot(forward(*qkv, do)[0], do), argnums=by)(q, k, v)

    return [jax.jit(call).lower(*given).compile() for call in (forward, both)]


def times() -> None:
    print(f"milliseconds, {TOKENS:,} tokens, {HEADS} heads: fused forward, both / by XLA")
    shape = lambda T, G=HEADS, **more: dict(B=TOKENS // T, T=T, G=G, R=HEADS // G, **more)  # noqa: E731
    cases = {
        "bf16, T 2048": (shape(2048), None, "float32"),
        "bf16, T 8192": (shape(8192), None, "float32"),
        "bf16, T 32768": (shape(32768), None, "float32"),
        "bf16, T 8192, window 512": (shape(8192), 512, "float32"),
        "bf16, T 8192, 4 KV heads": (shape(8192, 4), None, "float32"),
        "bf16, T 8192, heads of 128": (shape(8192, 8, K=128) | {"R": 1}, None, "float32"),
        "fp32, T 2048": (shape(2048, dtype=jnp.float32), None, "float32"),
        "fp32, T 2048, TF32": (shape(2048, dtype=jnp.float32), None, "tensorfloat32"),
    }
    for name, (case, window, products) in cases.items():
        with jax.default_matmul_precision(products):
            given = arrays(**case)
            ours, xla = (
                [milliseconds(call, given) for call in passes(form, given, window)]
                for form in (fused, blockwise)
            )
        print(f"{name:28} {ours[0]:8.2f} {ours[1]:8.2f}  / {xla[0]:8.2f} {xla[1]:8.2f}", flush=True)


SWEEPS: dict[int, dict[str, tuple[tuple[int, ...], ...]]] = {
    64: {
        "forward": (
            (128, 64, 4, 2), (128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 3), (128, 128, 8, 2),
            (128, 128, 8, 3), (64, 64, 4, 3), (64, 128, 4, 3), (128, 32, 4, 3),
        ),
        "keys_backward": (
            (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 3), (32, 64, 4, 3), (32, 64, 4, 4),
            (32, 128, 4, 3), (32, 128, 8, 3), (32, 128, 8, 4), (64, 128, 8, 2), (64, 128, 8, 3),
        ),
        "queries_backward": (
            (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (64, 32, 4, 3), (128, 32, 4, 3),
            (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2), (128, 128, 8, 2),
        ),
    },
    128: {
        "forward": (
            (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (64, 128, 4, 2),
            (128, 32, 4, 3),
        ),
        "keys_backward": (
            (64, 64, 8, 2), (32, 64, 4, 2), (32, 128, 8, 2), (64, 128, 8, 2), (32, 64, 8, 3),
        ),
        "queries_backward": (
            (64, 64, 8, 2), (64, 64, 4, 2), (128, 64, 8, 2), (64, 32, 4, 3), (128, 32, 8, 3),
        ),
    },
    256: {
        "forward": ((64, 32, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2), (64, 32, 8, 3)),
        "keys_backward": ((32, 32, 8, 1), (32, 64, 8, 1), (32, 64, 8, 2), (16, 64, 8, 2)),
        "queries_backward": ((32, 32, 8, 1), (64, 32, 8, 1), (64, 32, 8, 2), (64, 16, 4, 2)),
    },
}  # fmt: skip
"""By the width of heads: what leaves the registers little or no spill."""


def sweep(width: int = 64, T: int = 8192) -> None:
    print(f"milliseconds of kernels, bf16, T {T}, heads of {width}")
    given = arrays(B=TOKENS // T, T=T, G=HEADS * 64 // width, K=width)

    def compiled(of: tuple[str, Blocks]) -> Any:
        blocks = TUNED[2, width]._replace(**dict([of]))
        by = {"forward": (0,), "keys_backward": (1, 2), "queries_backward": (0,)}[of[0]]
        try:
            return passes(partial(fused, blocks=blocks), given, by=by)[of[0] != "forward"]
        except Exception as error:  # blocks that do not fit: the next may
            return str(error)[:80]

    tried = [(name, Blocks(*b)) for name, each in SWEEPS[width].items() for b in each]
    with ThreadPoolExecutor() as pool:
        calls = list(pool.map(compiled, tried))
    found = []
    for (name, blocks), call in zip(tried, calls, strict=True):
        if isinstance(call, str):
            print(f"{name:18} cannot run  {tuple(blocks)}: {call}", flush=True)
        else:
            found.append((name, milliseconds(call, given), blocks))
    for name, took, blocks in sorted(found):
        print(f"{name:18} {took:8.3f}  {tuple(blocks)}", flush=True)


PARTS = {"check": check, "times": times, "sweep": sweep}

if __name__ == "__main__":
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    words = sys.argv[1:] or list(PARTS)
    numbers = [int(word) for word in words if word.isdigit()]
    for part in (word for word in words if not word.isdigit()):
        PARTS[part](*numbers if part == "sweep" else ())
