"""How much memory does a long context take at evaluation?

Streams one window of T tokens through the quickstart's softmax model, fresh, as `lcx evaluate`
does, and prints the seconds and the most memory that the process ever held.

    python -m benchmarks.long_evaluation 32768
"""

import resource
import sys
import time

import jax
import numpy as np

from lcx.block import Block
from lcx.command.start import huge_pages
from lcx.evaluation.draft import Job
from lcx.evaluation.reading import Scorer
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.parallel.mesh import Mesh
from lcx.protocols import SameTargets, Text

MODEL = LM(width=128, pattern=(Block(SoftmaxAttention(heads=4)),), repeats=3)


def main() -> None:
    context = int(sys.argv[1]) if len(sys.argv) > 1 else 32_768
    tokens = context + 64
    ids = np.random.default_rng(0).integers(0, 256, tokens).astype(np.int32)
    text = Text("random", ids, np.arange(tokens), ((context, tokens),))
    protocol = SameTargets(contexts=(context,))
    jobs = [Job(0, 0, w) for w in protocol.excerpts(text, bos=256)]
    params = jax.jit(MODEL.init)(jax.random.key(0))
    began = time.perf_counter()
    (job, scores), *_ = Scorer(protocol, MODEL, params, Mesh()).score(jobs)
    (score,) = job.excerpt.scores
    nll = scores["nll"][score.first : score.last]
    seconds = time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"context {context}: {seconds:.1f} s, {most:.2f} GB resident, nll {nll.sum() / 64:.3f}")


if __name__ == "__main__":
    huge_pages()
    main()
