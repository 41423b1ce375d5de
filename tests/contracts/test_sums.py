"""Sums over tokens are fp32, whatever parameters and activations are stored in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from lcx.block import Block
from lcx.layers import CHANNELS
from lcx.logits import over_logits
from lcx.losses import CrossEntropy
from lcx.model import LM
from lcx.ops import sums
from lcx.positions import Learned
from lcx.sparsity import Fixed, TopBlocks
from lcx.types import Batch, Policy
from tests.contracts.cases import LENGTH, ROWS, SUBLAYERS, WIDTH, documents, name

BF16 = jnp.dtype("bfloat16")


def equations(jaxpr: Jaxpr):
    """All of a program, those of its loops and branches too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: isinstance(v, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                yield from equations(getattr(value, "jaxpr", value))


def in_bf16(jaxpr: Jaxpr) -> set[str]:
    """Sums in bf16 over rows or tokens, the first two axes, or of rows that are read from a table.

    The CPU's compiler takes the former in fp32 whatever it is told; those of others need not.
    """
    found = set()
    for equation in equations(jaxpr):
        kind, dtypes = equation.primitive.name, [v.aval.dtype for v in equation.outvars]
        axes = equation.params.get("axes", ())
        summed = kind in ("reduce_sum", "cumsum") and min(axes or (0,)) < 2
        if BF16 in dtypes and (summed or kind == "scatter-add"):
            found.add(f"{kind} of {equation.invars[0].aval}")
    return found


def gradients(model: LM):
    """The program of a training gradient, with logits in pieces."""
    positions, segments = documents(ROWS, LENGTH)
    tokens = jnp.zeros((ROWS, LENGTH), jnp.int32)
    batch = Batch(tokens, positions, segments, targets=tokens)

    def loss(params):
        out = model.hidden(params, batch)
        return CrossEntropy()(out.x, batch, partial(over_logits, model, params)).minimised

    return jax.make_jaxpr(jax.grad(loss))(jax.eval_shape(model.init, jax.random.key(0))).jaxpr


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    monkeypatch.setattr("lcx.logits.LOGITS", ROWS * 40 * 64)


@pytest.mark.parametrize("sublayer", SUBLAYERS, ids=name)
def test_no_gradient_is_summed_over_tokens_in_bf16(sublayer):
    channel = type(sublayer) in CHANNELS.values()
    block = Block(channel=sublayer) if channel else Block(sublayer)
    policy = Policy("bfloat16", "bfloat16")
    model = LM(vocab=64, width=WIDTH, pattern=(block,), repeats=1, policy=policy)
    found = in_bf16(gradients(model))
    if isinstance(getattr(sublayer, "sparsity", None), Fixed | TopBlocks):
        # a key is kept for later queries at one place: its gradient there is no sum
        found = {what for what in found if not what.startswith("scatter-add")}
    assert not found


def test_a_loop_over_pieces_of_logits_adds_in_fp32():
    model = LM(vocab=64, width=16, repeats=1, tied=False, policy=Policy("bfloat16", "bfloat16"))
    loops = [e for e in equations(gradients(model)) if e.primitive.name == "scan"]
    carried = [v.aval for loop in loops for v in loop.outvars[: loop.params["num_carry"]]]
    assert jnp.dtype("float32") in {a.dtype for a in carried if a.shape == (16, 64)}
    assert BF16 not in {a.dtype for a in carried if a.shape == (16, 64)}


def test_many_tokens_that_read_one_row_count_each():
    """In bf16 they would count as 256."""
    at = jnp.zeros(4096, jnp.int32)
    table = jnp.ones((3, 2), BF16)
    gradient = jax.jit(jax.grad(lambda t: sums.rows(t, at).astype(jnp.float32).sum()))(table)
    np.testing.assert_array_equal(gradient, [[4096] * 2, [0] * 2, [0] * 2])
    rows = jax.jit(jax.grad(lambda t: Learned(3)(nnx.Dict(table=nnx.Param(t)), at[None]).sum()))(
        table
    )
    np.testing.assert_array_equal(rows, [[4096] * 2, [0] * 2, [0] * 2])
