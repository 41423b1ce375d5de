"""How much memory does a long context take at evaluation, and does `lcx plan` say so?

Streams one window of T tokens, as `lcx evaluate` does, through a model whose numbers are all alike:
one of the quickstart's shape (`small`, fp32), or one of 1.06 billion parameters in bf16 (`1b`: 22
layers of 2048, 32 heads of which 8 of keys), or in fp32 (`1b-fp32`: CPUs widen bf16, which takes as
much again and more). Prints the seconds, the memory that was said for this
device, and the most that was taken: of the accelerator, or of the process beside what it held.

    python -m benchmarks.long_evaluation 32768 [small|1b|1b-fp32]
"""

import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from lcx.block import Block
from lcx.command.start import huge_pages
from lcx.evaluation.draft import Job
from lcx.evaluation.reading import Scorer
from lcx.experiment import Experiment
from lcx.layers import SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.planning.reading import measure_reading
from lcx.protocols import SameTargets, Text
from lcx.types import Policy

HALF = Policy(params="bfloat16", compute="bfloat16")
LARGE = Block(SoftmaxAttention(heads=32, kv_heads=8), SwiGLU(5632))
MODELS = {
    "small": LM(width=128, pattern=(Block(SoftmaxAttention(heads=4)),), repeats=3),
    "1b": LM(vocab=32_768, width=2048, pattern=(LARGE,), repeats=22, policy=HALF),
    "1b-fp32": LM(vocab=32_768, width=2048, pattern=(LARGE,), repeats=22),
}


def taken() -> int:
    """Bytes, the most so far."""
    stats = jax.devices()[0].memory_stats()
    if stats is not None:
        return stats["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    context = int(sys.argv[1]) if len(sys.argv) > 1 else 32_768
    model = MODELS[sys.argv[2] if len(sys.argv) > 2 else "small"]
    tokens = context + 64
    ids = np.random.default_rng(0).integers(0, 256, tokens).astype(np.int32)
    text = Text("random", ids, np.arange(tokens), ((context, tokens),))
    protocol = SameTargets(contexts=(context,))
    jobs = [Job(0, 0, w) for w in protocol.excerpts(text, bos=256)]
    said = measure_reading(Experiment(model, evaluation=protocol)).memory
    before = 0 if jax.devices()[0].memory_stats() else taken()
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.full(a.shape, 0.01, a.dtype), abstract)
    scorer = Scorer(protocol, model, params, Mesh())
    for _ in range(2 if context < 16_384 else 1):  # the second time nothing is compiled
        began = time.perf_counter()
        list(scorer.score(jobs))
        seconds = time.perf_counter() - began
    print(
        f"{jax.devices()[0].device_kind}, context {context}: {seconds:.1f} s, "
        f"said {said / 2**30:.2f} GiB, taken {(taken() - before) / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    huge_pages()
    main()
