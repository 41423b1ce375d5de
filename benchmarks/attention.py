"""How fast is softmax attention alone, against torch's scaled_dot_product_attention?

Causal, fp32, 4 heads of 64, 8,192 tokens in all at each length, every core; multi-head and
multi-query (torch is given one KV head and `enable_gqa`). The two take turns, the fastest call of
each counts. A ratio above 1: lcx is faster.

    pip install -e '.[parity]' && python -m benchmarks.attention
"""

import os

import jax
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.turns import fastest
from lcx.command.start import huge_pages
from lcx.ops.attention import attention

HEADS, WIDTH, TOKENS = 4, 64, 8192
LENGTHS = (512, 1024, 2048, 4096, 8192)


def ours(q, k, v):
    """The forward pass, and the forward and backward pass, of the sum of the output."""
    forward = jax.jit(lambda *x: attention(*x)[0])
    both = jax.jit(lambda *x: jax.grad(lambda *x: attention(*x)[0].sum(), (0, 1, 2))(*x))
    return tuple(lambda f=f: jax.block_until_ready(f(q, k, v)) for f in (forward, both))


def theirs(q, k, v):
    """The same of torch, which wants [B H T K]."""
    q, k, v = (torch.tensor(x.swapaxes(1, 2), requires_grad=True) for x in (q, k, v))
    ones = torch.ones_like(q)

    def attend():
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def forward():
        with torch.no_grad():
            return attend()

    return forward, lambda: torch.autograd.grad(attend(), (q, k, v), ones)


def main() -> None:
    torch.set_num_threads(os.cpu_count())
    print(f"{TOKENS:,} tokens, {HEADS} heads of {WIDTH}, fp32, {os.cpu_count()} cores; ms, ratio")
    print("KV heads  length     forward: torch   lcx         and backward: torch    lcx")
    rng = np.random.default_rng(0)
    for groups in (HEADS, 1):
        for length in LENGTHS:
            rows = TOKENS // length
            shapes = ((rows, length, n, WIDTH) for n in (HEADS, groups, groups))
            arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
            times = []
            for mine, other in zip(ours(*arrays), theirs(*arrays), strict=True):
                torch_s, lcx_s = fastest(other, mine)
                times += [1e3 * torch_s, 1e3 * lcx_s, torch_s / lcx_s]
            row = "{:8.1f} {:8.1f}  {:5.2f}        {:8.1f} {:8.1f}  {:5.2f}".format(*times)
            print(f"{groups:8d} {length:7,d}   {row}", flush=True)


if __name__ == "__main__":
    huge_pages()
    main()
