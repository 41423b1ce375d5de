"""How fast is a training step, against the same model in transformers and torch?

Same architecture, weights, batch and optimizer (AdamW, clipping), fp32, all cores; the two take
turns, so that a noisy machine disturbs both, and the fastest step of each counts; a ratio above 1
says that lcx is faster. Then Muon, beside AdamW in turns, in wall time and in processor time, which
other work on the machine hardly changes. Then the parts: what is left of lcx's step when a part
does nothing.

    pip install -e '.[parity]' && python -m benchmarks.train_step
"""

import os
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from benchmarks.turns import fastest
from lcx.block import Block
from lcx.command.start import huge_pages
from lcx.experiment import Experiment
from lcx.layers import SwiGLU
from lcx.mixers import SoftmaxAttention
from lcx.model import LM
from lcx.optim import AdamW, Muon, Optimizer
from lcx.training.loop import TrainState, make_step
from lcx.types import Batch, Output
from tests.parity.against_torch import to_lcx
from tests.parity.test_llama import NAMES

WIDTHS = {128: 352, 256: 704}
"""Hidden width of the gated MLP by width of the model."""
LAYERS, HEAD_WIDTH, VOCAB, LENGTH, BATCH = 4, 64, 257, 512, 8
OPTIMIZER = AdamW(peak=1e-3, warmup=0, schedule="constant")


@dataclass(frozen=True)
class Nothing:
    """A sublayer that does nothing."""

    def init(self, dims, rngs):
        return nnx.Dict()

    def init_state(self, dims, batch, capacity):
        return ()

    def __call__(self, params, x, ctx, state=None):
        return Output(x, state)


def lm(width, mixer, channel) -> LM:
    return LM(VOCAB, width, (Block(mixer, channel),), LAYERS, tied=True)


class Torch:
    """Llama in transformers, with torch's fused AdamW and scaled_dot_product_attention."""

    def __init__(self, width: int, tokens: np.ndarray):
        torch.set_num_threads(os.cpu_count())
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            intermediate_size=WIDTHS[width],
            num_hidden_layers=LAYERS,
            num_attention_heads=width // HEAD_WIDTH,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
        self.model = transformers.LlamaForCausalLM(config)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": OPTIMIZER.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=OPTIMIZER.peak,
            betas=(OPTIMIZER.b1, OPTIMIZER.b2),
            eps=OPTIMIZER.eps,
            fused=True,
        )
        self.inputs, self.targets = (torch.tensor(t, dtype=torch.long) for t in tokens)

    def step(self) -> float:
        logits = self.model(self.inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Lcx:
    """The step of `lcx train`, as it is."""

    def __init__(self, model: LM, tokens, params=None, optimizer: Optimizer = OPTIMIZER):
        optimizer = optimizer.transform(1000)
        params = jax.jit(model.init)(jax.random.key(0)) if params is None else params
        self.state = TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))
        position = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens[0].shape)
        ones = np.ones_like(position)
        self.batch = Batch(tokens[0], position, ones, targets=tokens[1])
        experiment = replace(Experiment(), model=model)
        self._step = jax.jit(make_step(experiment, optimizer), donate_argnums=0)

    def step(self) -> float:
        self.state, metrics = self._step(self.state, self.batch)
        loss = float(metrics["loss"])
        jax.block_until_ready(self.state)
        return loss


def measure(width: int) -> None:
    """Print the rows of one width."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, 256, (BATCH, LENGTH + 1)).astype(np.int32)
    tokens = np.stack([text[:, :-1], text[:, 1:]])
    attention, mlp = SoftmaxAttention(heads=width // HEAD_WIDTH), SwiGLU(hidden=WIDTHS[width])
    model = lm(width, attention, mlp)
    theirs = Torch(width, tokens)
    weights = to_lcx(model, dict(theirs.model.named_parameters()), NAMES)
    ours = Lcx(model, tokens, weights)
    first = theirs.step(), ours.step()
    assert abs(first[0] - first[1]) < 1e-4, f"not the same model: losses {first}"

    slow, fast = fastest(theirs.step, ours.step)
    each = BATCH * LENGTH
    print(f"d {width}, {LAYERS} layers, T {LENGTH}, B {BATCH}, fp32, {os.cpu_count()} cores")
    print(f"torch {1e3 * slow:7.1f} ms   {each / slow:8,.0f} tokens/s")
    print(f"lcx   {1e3 * fast:7.1f} ms   {each / fast:8,.0f} tokens/s   ratio {slow / fast:.2f}")
    both = Lcx(model, tokens).step, Lcx(model, tokens, optimizer=Muon()).step
    for clock in (time.perf_counter, time.process_time):
        adamw, muon = fastest(*both, clock=clock)
        print(f"Muon's step over AdamW's, by {clock.__name__}: {muon / adamw:.3f}")
    parts = {
        "attention": Lcx(lm(width, Nothing(), mlp), tokens).step,
        "gated MLP": Lcx(lm(width, attention, Nothing()), tokens).step,
        "both": Lcx(lm(width, Nothing(), Nothing()), tokens).step,
    }
    for name, seconds in zip(parts, fastest(*parts.values()), strict=True):
        print(f"lcx without {name:10s} {1e3 * seconds:7.1f} ms")


if __name__ == "__main__":
    huge_pages()
    for each in WIDTHS:
        measure(each)
