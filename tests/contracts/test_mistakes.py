"""The bound of the laws is tight enough: three deliberate mistakes are far outside it."""

import jax
import jax.numpy as jnp
import pytest

from lcx.checking.bounds import rounding
from lcx.mixers import GLA, RWKV6, Mamba2, gla, mamba2, rwkv6
from tests.bounds import assert_rounded
from tests.contracts.cases import case, gradients_of, whole


def late_decay(op):
    return lambda *args, g, **more: op(*args, g=jnp.roll(g, 1, axis=1), **more)


def no_gradient_of_decay(op):
    return lambda q, k, v, g, **more: op(q, k, v, jax.lax.stop_gradient(g), **more)


def no_bonus(op):
    return lambda *args, bonus, **more: op(*args, bonus=jnp.zeros_like(bonus), **more)


@pytest.mark.parametrize(
    ("sublayer", "module", "op", "mistake"),
    [
        (Mamba2(), mamba2, "linear_attention", late_decay),
        (GLA(), gla, "gated_linear_attention", no_gradient_of_decay),
        (RWKV6(), rwkv6, "gated_linear_attention", no_bonus),
    ],
)
def test_a_mistake_is_outside_the_bound(sublayer, module, op, mistake, monkeypatch):
    c = case(sublayer)
    args = c.params, c.x, c.packed
    right, units = whole(sublayer)(*args), rounding(whole(sublayer), *args)
    monkeypatch.setattr(module, op, mistake(getattr(module, op)))
    wrong = gradients_of(lambda p, x, ctx: sublayer(p, x, ctx)[0])(*args)
    with pytest.raises(AssertionError, match="at most"):
        assert_rounded(wrong, right, looser(units, 20))  # even a bound twenty times as loose


def looser(units, times):
    return jax.tree.map(lambda unit: times * unit, units)
