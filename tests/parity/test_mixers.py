"""Mixers against the modules of transformers: outputs and gradients, with the weights copied.

Those of published models that lcx reads are compared as whole models, in `test_families.py`; what
transformers has no module of, `tests/test_equations.py` compares with the papers' equations.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcx.mixers import GatedConv, Lightning, SoftmaxAttention
from lcx.sparsity import Window
from lcx.types import Context, Dims, Sublayer
from tests.parity.against_torch import NEEDED, assert_leaves_close, randomise

torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("transformers", reason=NEEDED)

WIDTH, LENGTH, ROWS = 32, 70, 2

Tensors = dict[str, np.ndarray]


class Case(NamedTuple):
    """A mixer, its layer's place, the module, how to call that, and its tensors as our leaves."""

    sublayer: Sublayer
    module: Callable[[], Any]
    call: Callable[[Any, Any], Any]
    leaves: Callable[[Tensors], Tensors]
    layer: int = 0
    within: float = 1e-5
    """Measured: up to 2e-6."""


def models(name: str) -> Any:
    return import_module(f"transformers.models.{name}.modeling_{name}")


def dense(tensors: Tensors, **names: str) -> Tensors:
    """Weights of linear maps: `leaf=tensor`."""
    return {f"{leaf}.kernel": tensors[f"{name}.weight"].T for leaf, name in names.items()}


def conv(tensors: Tensors, name: str = "conv1d") -> Tensors:
    return {"conv": tensors[f"{name}.weight"][:, 0].T}


def cut(kernel: np.ndarray, **widths: int) -> Tensors:
    """Columns of one kernel in turn: `leaf=width`."""
    ends = np.cumsum(list(widths.values()))
    assert ends[-1] == kernel.shape[1]
    parts = np.split(kernel, ends[:-1], axis=1)
    return {f"{leaf}.kernel": part for leaf, part in zip(widths, parts, strict=True)}


# Convolutions and recurrences


def lfm2():
    m = models("lfm2")
    config = m.Lfm2Config(
        hidden_size=WIDTH, conv_L_cache=3, conv_bias=False, num_hidden_layers=1,
        layer_types=["conv"], num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return m.Lfm2ShortConv(config, layer_idx=0)


def lfm2_leaves(t):
    kernels = cut(t["in_proj.weight"].T, b=WIDTH, c=WIDTH, x=WIDTH)
    return kernels | dense(t, out="out_proj") | conv(t, "conv")


def minimax():
    m = models("minimax")
    config = m.MiniMaxConfig(
        hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=4, head_dim=8, block_size=16,
        num_hidden_layers=3, layer_types=["linear_attention"] * 3,
    )  # fmt: skip
    return m.MiniMaxLightningAttention(config, layer_idx=1)


def minimax_leaves(t):
    heads = t["qkv_proj.weight"].T.reshape(WIDTH, 4, 3, 8)
    kernels = {f"{n}.kernel": heads[:, :, i].reshape(WIDTH, -1) for i, n in enumerate("qkv")}
    return kernels | dense(t, out="out_proj", gate="output_gate") | {"scale": t["norm.weight"]}


# Softmax attention


def gpt_oss_call(module, x):
    positions = torch.arange(x.shape[1])[None]
    rotary = models("gpt_oss").GptOssRotaryEmbedding(module.config)
    age = positions[0][:, None] - positions[0][None]
    mask = torch.where((age >= 0) & (age < 9), 0.0, torch.finfo(torch.float32).min)[None, None]
    return module(x, position_embeddings=rotary(x, positions), attention_mask=mask)[0]


SIZES = {
    "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_hidden_layers": 1, "attn_implementation": "eager",
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


def gpt_oss():
    m = models("gpt_oss")
    config = m.GptOssConfig(**SIZES, sliding_window=9, attention_bias=False, rope_parameters=PLAIN)
    return m.GptOssAttention(config, layer_idx=0)


def gpt_oss_leaves(t):
    return dense(t, q="q_proj", k="k_proj", v="v_proj", out="o_proj") | {"sink": t["sinks"]}


CASES = {
    "Lfm2ShortConv": Case(GatedConv(kernel_size=3), lfm2, lambda m, x: m(x), lfm2_leaves),
    "MiniMaxLightningAttention": Case(
        Lightning(), minimax, lambda m, x: m(x, None, None)[0], minimax_leaves, layer=1
    ),
    "GptOssAttention": Case(
        SoftmaxAttention(kv_heads=2, sparsity=Window(9), sink_logit=True),
        *(gpt_oss, gpt_oss_call, gpt_oss_leaves),
    ),
}


def to_lcx(case: Case, tensors: dict[str, Any], constants: bool = True) -> nnx.Dict:
    """Our parameters filled from the module's; what it has no tensor for keeps its first value."""
    with nnx.use_eager_sharding(False):
        params = case.sublayer.init(Dims(WIDTH, layers=3, layer=case.layer), nnx.Rngs(0))
    leaves = case.leaves({n: a.detach().numpy() for n, a in tensors.items()})

    def fill(path, like):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        if name not in leaves:
            assert name == "log_rate", f"no tensor for {name}"
            return like if constants else jnp.zeros_like(like)
        a = leaves.pop(name)
        assert a.shape == like.shape, f"{name}: {a.shape}, not {like.shape}"
        return jnp.array(a)

    params = jax.tree_util.tree_map_with_path(fill, params)
    assert not leaves, f"tensors without a leaf: {sorted(leaves)}"
    return params


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name):
    case = CASES[name]
    module = case.module()
    randomise(module)
    rng = np.random.default_rng(1)
    x, probe = rng.normal(size=(2, ROWS, LENGTH, WIDTH)).astype(np.float32)

    theirs = torch.from_numpy(x).requires_grad_()
    expected = case.call(module, theirs)
    (expected * torch.from_numpy(probe)).sum().backward()
    params = to_lcx(case, dict(module.named_parameters()))

    @jax.jit
    def ours(params, x):
        def loss(params, x):
            y = case.sublayer(params, x, Context.of(jnp.arange(LENGTH)[None].repeat(ROWS, 0))).x
            return (y * probe).sum(), y

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    (_, y), gradients = ours(params, x)
    assert_leaves_close(y, expected.detach().numpy(), within=case.within)
    by_name = {n: p.grad for n, p in module.named_parameters()}
    assert_leaves_close(gradients[1], theirs.grad.numpy(), within=case.within)
    wanted = to_lcx(case, by_name, constants=False)
    assert_leaves_close(gradients[0], wanted, within=case.within)
