"""The fused form of softmax attention: its kernels, run in JAX's own operations, against the plain
form; that they lower for a GPU, and what is refused.

`python -m benchmarks.fused_attention check` compares them on a GPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from lcx.kernels import Kernels
from lcx.ops.attention import Bias, attention
from lcx.ops.fused_attention import KernelBlocks, fused, unfit
from lcx.ops.fused_kernels import Blocks
from lcx.ops.tiles import MASK_VALUE, Scoring
from lcx.parallel.mesh import Mesh, make_mesh
from tests.marks import rest
from tests.test_attention import SLOPES, inputs, output_and_gradients, worst

SMALL = KernelBlocks(Blocks(16, 16, 4, 2), Blocks(16, 32, 4, 2), Blocks(32, 16, 4, 2))
"""Several blocks of the tests' few tokens; a kernel's are not another's."""


def interpreted(
    q, k, v, *, offset=0, window=None, softcap=None, segments=None, bias=None, scale=None
):
    """`attention` by the fused kernels, on the CPU."""
    B, T, H, K = q.shape
    G = k.shape[2]
    slopes, positions = bias or (None, None)
    scoring = Scoring(K**-0.5 if scale is None else scale, window, softcap, slopes)
    q = q.reshape(B, T, G, H // G, K)
    o, lse = fused(q, k, v, offset, scoring, segments, positions, SMALL, interpret=True)
    return o.reshape(B, T, H, -1), lse.reshape(B, T, H)


def both(arrays, **options):
    """Of the fused and of the plain form."""
    plain = partial(attention, kernels=Kernels("reference"))
    run = jax.jit(lambda arrays: [
        output_and_gradients(form, *arrays, **options) for form in (interpreted, plain)
    ])  # fmt: skip
    return run(arrays)


def packed(T, S):
    """Documents and positions of the last T of S tokens, and of all."""
    rng = np.random.default_rng(1)
    theirs = np.sort(rng.integers(0, 4, (2, S)), axis=1).astype(np.int32)
    theirs[0, -9] = 9  # a document of one token, between others
    at = (2**24 + np.cumsum(rng.integers(1, 4, (2, S)), axis=1)).astype(np.int32)
    return tuple((jnp.asarray(x[:, S - T :]), jnp.asarray(x)) for x in (theirs, at))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"T": 40}, {}),
        rest({"T": 64, "K": 16}, {}),
        rest({"T": 5}, {"scale": -0.3}),
        # Heads: as many as KV heads, and one KV head for all; widths that are no power of 2.
        ({"T": 33, "G": 4, "K": 20, "V": 12}, {"softcap": 1.5}),
        rest({"T": 33, "G": 1}, {"window": 1}),
        # A window's two edges, and some of a longer text's queries.
        ({"T": 70, "G": 1}, {"window": 40}),
        rest({"T": 21, "S": 60}, {"offset": 39, "window": 7}),
        # Queries before every key, and past them all.
        rest({"T": 21, "S": 60}, {"offset": 70, "window": 30}),
        ({"T": 21, "S": 60}, {"offset": -5, "window": 16}),
    ],
)
def test_the_fused_form_equals_the_plain_one(shape, options):
    errors = worst(*both(inputs(**shape), **options))
    assert max(errors.values()) < 5e-6, errors  # measured: 7e-7


@pytest.mark.parametrize("options", [{}, {"softcap": 1.5, "window": 30}])
def test_documents_and_distances_at_a_traced_offset(options):
    segments, positions = packed(21, 60)
    bias = Bias(SLOPES, positions)
    for more in ({"segments": segments}, {"bias": bias}, {"segments": segments, "bias": bias}):
        errors = worst(*both(inputs(T=21, S=60), offset=jnp.int32(39), **more, **options))
        assert max(errors.values()) < 5e-6, errors  # measured: 8e-7


def test_a_query_without_keys_gives_zero_and_takes_no_gradient():
    segments = np.ones((2, 20), np.int32), np.ones((2, 40), np.int32)
    segments[0][:, 7] = 2
    got, wanted = both(inputs(T=20, S=40), offset=-3, segments=jax.tree.map(jnp.asarray, segments))
    assert max(worst(got, wanted).values()) < 5e-6
    for array in (got["o"], got["dq"], got["lse"] - MASK_VALUE):
        assert (np.asarray(array)[:, [0, 1, 2, 7]] == 0).all()


def test_bf16_rounds_as_often_as_the_form_by_xla():
    rounded = inputs(T=90, K=16, dtype=jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in rounded]
    got, xla, wanted = (
        jax.jit(partial(output_and_gradients, form))(*arrays)
        for form, arrays in ((interpreted, rounded), (attention, rounded), (attention, exact))
    )
    assert {x.dtype for name, x in got.items() if name != "lse"} == {jnp.dtype("bfloat16")}
    errors, theirs = worst(got, wanted), worst(xla, wanted)
    assert all(errors[name] < 1.3 * theirs[name] + 1e-6 for name in errors), (errors, theirs)


@pytest.mark.parametrize(
    ("mesh", "G"), [(Mesh(data=2, model=2), 2), rest(Mesh(fsdp=2, model=4), 1), rest(Mesh(4), 2)]
)
def test_each_device_works_on_its_rows_and_heads(mesh, G):
    """With 4 devices for 2 rows, each has them all."""
    arrays = inputs(T=40, G=G)
    segments, positions = packed(40, 40)
    options = {"segments": segments, "bias": Bias(SLOPES, positions), "window": 30}
    wanted = both(arrays, **options)[0]
    with jax.set_mesh(make_mesh(mesh)):
        got = both(arrays, **options)[0]
    assert max(worst(got, wanted).values()) < 1e-6  # sums over heads, in another order
    assert len(got["o"].sharding.device_set) == mesh.devices


@pytest.mark.parametrize(
    ("dtype", "shape"), [(jnp.bfloat16, {"G": 4, "K": 64}), (jnp.float32, {"G": 1, "K": 80})]
)
def test_it_lowers_for_a_gpu(dtype, shape):
    """Without one: as far as Triton's own language, for each of the three kernels."""
    arrays = [x.astype(dtype) for x in inputs(T=300, **shape)]
    segments, positions = packed(300, 300)
    slopes = tuple(SLOPES)

    def run(q, k, v, do, offset):
        def form(q, k, v):
            q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
            scoring = Scoring(0.1, 70, 30.0, slopes)
            return fused(q, k, v, offset, scoring, segments, positions)

        (o, lse), pull = jax.vjp(form, q, k, v)
        return pull((do.reshape(o.shape), lse))

    gpu = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("NVIDIA H100", None, "gpu"))
    with jax.sharding.use_abstract_mesh(gpu):
        traced = jax.jit(run).trace(*arrays, jnp.int32(0))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton(") == 3
    for name in KernelBlocks._fields:
        assert f'name = "attention_{name}"' in text


def test_without_a_gpu_it_is_refused():
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match=r"'pallas': softmax attention cannot run so: .* on a cpu"):
        attention(q, k, v, kernels=Kernels("pallas"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"q": jnp.zeros((2, 40, 4, 8), jnp.bfloat16)}, "not bfloat16, float32, float32"),
        ({"v": jnp.zeros((2, 40, 2, 300))}, "256 wide, not 300"),
        ({"offset": jnp.arange(40)}, "a single offset"),
    ],
)
def test_unfit_says_why(change, reason, monkeypatch):
    gpu = type("", (), {"platform": "gpu", "compute_capability": "9.0", "device_kind": "H100"})
    monkeypatch.setattr("lcx.ops.fused_attention._device", lambda: gpu)
    q, k, v, _ = inputs()
    said = unfit(**({"q": q, "k": k, "v": v, "offset": 0} | change))
    assert said is None if reason is None else reason in said
    with jax.set_mesh(make_mesh(Mesh(model=4))):
        assert "4, which does not divide the 2 KV heads" in unfit(q, k, v, 0)
