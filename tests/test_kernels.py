"""Which form of each operation runs is chosen in one place."""

import jax
import jax.numpy as jnp
import pytest

from lcx.block import Block
from lcx.kernels import Kernels, chosen
from lcx.mixers import Mamba2
from lcx.model import LM
from lcx.ops.attention import attention
from lcx.types import Batch, Policy


def test_the_fastest_form_depends_on_the_platform(monkeypatch):
    assert chosen("delta_rule", Kernels()) == chosen("attention", Kernels()) == "xla"
    assert chosen("lru", Kernels()) == "reference"  # the tests run on a CPU
    assert chosen("lru", Kernels("xla")) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chosen("lru", Kernels()) == "xla"
    assert chosen("attention", Kernels()) == "pallas"
    # a GPU that the kernels are not for, here none, is no error unless they are asked for
    q = jnp.ones((1, 8, 2, 16))
    assert (attention(q, q, q)[0] == 1).all()
    with pytest.raises(ValueError, match="for NVIDIA GPUs, and computing is on a cpu"):
        attention(q, q, q, kernels=Kernels("pallas"))


def test_the_fused_form_is_of_attention_alone():
    assert chosen("attention", Kernels("pallas")) == "pallas"
    assert chosen("delta_rule", Kernels("pallas")) == "xla"
    assert chosen("delta_rule", Kernels("pallas"), 1) == "reference"


def test_a_single_token_needs_no_chunks():
    assert chosen("delta_rule", Kernels(), 1) == "reference"
    assert chosen("delta_rule", Kernels(), 2) == chosen("delta_rule", Kernels("xla"), 1) == "xla"


def test_an_unknown_form_is_refused():
    with pytest.raises(
        ValueError, match="kernels 'triton': there are 'reference', 'xla', 'pallas', or"
    ):
        Kernels("triton")


def test_a_model_s_policy_reaches_its_layers():
    def program(policy: Policy) -> str:
        block = Block(Mamba2(state=8, head_width=8))
        model = LM(vocab=11, width=16, pattern=(block,), repeats=1, policy=policy)
        params = jax.eval_shape(model.init, jax.random.key(0))
        return str(jax.make_jaxpr(model)(params, Batch(jnp.zeros((1, 70), jnp.int32))))

    plain, fast, default = (program(Policy(kernels=k)) for k in ("reference", "xla", None))
    assert default == fast != plain
