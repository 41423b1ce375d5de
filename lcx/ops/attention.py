"""Softmax attention: one function in several forms, and the union of two sets of keys.

    o_t = sum_s softmax_s(scale q_t . k_s) v_s      over the keys s that query t may see

Beside the output comes lse_t, the logsumexp of the scores that query t saw. It is what joins
attention over several sets of keys into one softmax (`merge`), and what a learned sink or another
term of the denominator needs.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lcx.kernels import FASTEST_THERE_IS, Kernels, chosen
from lcx.ops.blockwise import blockwise
from lcx.ops.fused_attention import fused, lacking, unfit
from lcx.ops.tiles import MASK_VALUE, Offset, Positions, Scoring, Segments


class Bias(NamedTuple):
    """What distance takes from the scores: score - slope * (position of query - of key).

    ALiBi (Press et al. 2022). Positions are integers, so that the bias is exact to fp32 however
    far both lie from 0, and is made tile by tile.
    """

    slopes: tuple[float, ...]
    """Of each query head."""
    positions: Positions
    """Of the queries and of the keys."""


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    *,
    offset: Offset = 0,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    segments: Segments | None = None,
    bias: Bias | None = None,
    decay: Float[np.ndarray, " K"] | None = None,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """Causal attention of T queries to S keys: the output in q's dtype, and lse in fp32.

    With G < H, KV head j serves queries heads [j H/G, (j+1) H/G): G = 1 is multi-query attention.
    Scores and sums are fp32.

    Args:
        offset: index among the keys of the first query: query t sees keys s <= offset + t. An
            int, or an integer array when it is known only at run time (streaming). An array [B T],
            or [T] for all rows: the index of each query, never less than that of the one before.
        window: each query sees exactly the last `window` keys, itself included: s > offset + t -
            window. None: the whole past.
        scale: factor of the scores; K ** -0.5 by default.
        softcap: a bound on the scaled scores, softcap * tanh(score / softcap) (Gemma 2).
        segments: the document of each query and of each key; a query sees its own document only.
        bias: added to the scores, after scale and cap.
        decay: log-decays, of each feature's product by each token between query and key, counted
            by their indices: q_t . (exp(decay) ** (offset + t - s) * k_s) (xPos). At most 0.
        kernels: the plain form takes T x S memory; the fast ones go tile by tile, and make the
            scores of at most `FEW` queries at once. "pallas" keeps tiles on the chip of an NVIDIA
            GPU, where it is the default wherever it can run (`lcx.ops.fused_attention.unfit`).

    A query that sees no key gives 0 and lse = MASK_VALUE (-1e30, finite), and has gradient 0.
    Differentiable in reverse mode, once. Raises ValueError when shapes or options do not fit, or
    where "pallas" is asked for and cannot run.
    """
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q, k, v must be [B T H K], [B S G K], [B S G V]; {_shapes(q, k, v)}")
    B, T, H, K = q.shape
    S, G = k.shape[1:3]
    if k.shape != (B, S, G, K) or v.shape[:3] != (B, S, G):
        raise ValueError(f"q, k, v must agree in B and K, k and v in S and G; {_shapes(q, k, v)}")
    if T == 0 or S == 0:
        raise ValueError(f"attention needs a query and a key; {_shapes(q, k, v)}")
    if H % G:
        raise ValueError(f"the {H} query heads must be a multiple of the {G} KV heads")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (the token itself), not {window}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if jnp.shape(offset) not in ((), (T,), (B, T)):
        raise ValueError(
            f"offset must be a number or of shape {(T,)} or {(B, T)}, not {jnp.shape(offset)}"
        )
    if segments is not None and (segments[0].shape, segments[1].shape) != ((B, T), (B, S)):
        got = f"{segments[0].shape} and {segments[1].shape}"
        raise ValueError(f"segments must be of shapes {(B, T)} and {(B, S)}, not {got}")
    if bias is not None:
        shapes = tuple(p.shape for p in bias.positions)
        if len(bias.slopes) != H or shapes != ((B, T), (B, S)):
            raise ValueError(
                f"bias must have {H} slopes and positions of shapes {(B, T)} and {(B, S)}, not "
                f"{len(bias.slopes)} and {shapes[0]} and {shapes[1]}"
            )

    form = chosen("attention", kernels)
    # tiles leave out what lies before the window
    few = T <= FEW and (window is None or 2 * window > S) and form != "reference"
    if form == "pallas":
        reason = lacking()
        if reason and kernels.form == "pallas":
            raise ValueError(f"kernels 'pallas': softmax attention cannot run so: {reason}")
        if reason or unfit(q, k, v, offset):
            form = "xla"
    forms = {"reference": _reference, "xla": blockwise, "pallas": fused}
    run = _at_once if few else forms[form]
    slopes, positions = (None, None) if bias is None else bias
    scoring = Scoring(K**-0.5 if scale is None else scale, window, softcap, slopes)
    if decay is not None:
        q, k = _decayed(q, k, offset, decay)
    o, lse = run(q.reshape(B, T, G, H // G, K), k, v, offset, scoring, segments, positions)
    return o.reshape(B, T, H, -1).astype(q.dtype), lse.reshape(B, T, H)


def _shapes(q: Array, k: Array, v: Array) -> str:
    return f"q is {q.shape}, k is {k.shape}, v is {v.shape}"


def _decayed(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    offset: Offset,
    decay: Float[np.ndarray, " K"],
) -> tuple[Float[Array, "B T H K"], Float[Array, "B S G K"]]:
    """q and k whose products decay with the distance.

    Both are scaled by what lies between them and the middle of the queries: from the start of a
    long text their exponents would leave fp32. Keys long before decay to 0, as they should.
    """
    reach = float(-np.min(decay)) * q.shape[1] / 2
    if reach > _EXPONENT:
        most = math.floor(_EXPONENT / reach * q.shape[1])
        raise ValueError(
            f"{q.shape[1]} queries at once, with a decay of e^{np.min(decay):.3g} a token: their "
            f"products would leave fp32. At most {most} at once; stream longer texts in pieces"
        )
    if jnp.ndim(offset) != 0:
        raise ValueError("decay counts tokens: the queries must be consecutive (a single offset)")
    t = jnp.arange(q.shape[1]) - q.shape[1] // 2
    s = jnp.arange(k.shape[1]) - q.shape[1] // 2 - offset
    rates = jnp.asarray(decay, jnp.float32)
    # of keys past the queries, which none of them sees, only that they are finite matters
    s = jnp.minimum(s, -t[0])
    q, k = (
        (x.astype(jnp.float32) * jnp.exp(sign * rates * at[:, None])[:, None]).astype(x.dtype)
        for x, sign, at in ((q, 1, t), (k, -1, s))
    )
    return q, k


_EXPONENT = 40.0
"""Two factors of this power of e, and what they are factors of, stay finite in fp32."""


def merge(
    a: tuple[Float[Array, "B T H V"], Float[Array, "B T H"]],
    b: tuple[Float[Array, "B T H V"], Float[Array, "B T H"]],
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """One softmax over two disjoint sets of keys, from the (o, lse) of each; computed in fp32.

    The output has a's dtype. A query that saw nothing in one set has the other's result.
    """
    lse = jnp.logaddexp(a[1], b[1])
    x, y = (jnp.exp(part - lse)[..., None] * o.astype(jnp.float32) for o, part in (a, b))
    return (x + y).astype(a[0].dtype), lse


def attend_few(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B own few G K"],
    v: Float[Array, "B own few G V"],
    seen: Bool[Array, "B T few"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Bias | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """Attention of each query to few keys of its own, or (own = 1) of its row: (o, lse).

    All scores are made. `seen` says which of the few a query may see; `bias` has their positions,
    in each row [B few].
    """
    B, T, H, K = q.shape
    G = k.shape[3]
    slopes, positions = (None, None) if bias is None else bias
    scoring = Scoring(K**-0.5 if scale is None else scale, None, softcap, slopes)
    grouped = q.reshape(B, T, G, H // G, K)
    own = "t" if k.shape[1] == T else "u"
    products = jnp.einsum(f"btgrk,b{own}ngk->btgrn", grouped, k, preferred_element_type=jnp.float32)
    scores = scoring.scores(products)
    if positions is not None:
        scores += _by_group(scoring.bias(*positions), scores.shape)
    weights, total, lse = _softmax(scores, seen[:, :, None, None])
    o = jnp.einsum(
        f"btgrn,b{own}ngv->btgrv", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    o /= total[..., None]
    return o.reshape(B, T, H, -1).astype(q.dtype), lse.reshape(B, T, H)


def _by_group(bias: Float[Array, "B H T S"], shape: tuple[int, ...]) -> Float[Array, "B T G R S"]:
    return jnp.moveaxis(bias, 2, 1).reshape(shape)


class _Softmax(NamedTuple):
    weights: Float[Array, "... S"]
    """Not yet divided by their sum: outputs are, which are fewer."""
    total: Float[Array, "..."]
    """The sum; 1 of a query that sees no key."""
    lse: Float[Array, "..."]


def _softmax(scores: Float[Array, "... S"], seen: Bool[Array, "... S"]) -> _Softmax:
    """Weights of the keys seen, and the logsumexp of their scores."""
    scores = jnp.where(seen, scores, MASK_VALUE)
    top = jax.lax.stop_gradient(scores.max(axis=-1))
    weights = jnp.where(seen, jnp.exp(scores - top[..., None]), 0.0)
    total = weights.sum(axis=-1)
    total = jnp.where(total > 0, total, 1.0)
    return _Softmax(weights, total, top + jnp.log(total))


FEW = 4
"""So many queries have all their scores made at once."""


def _reference(
    q: Float[Array, "B T G R K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    offset: Offset,
    scoring: Scoring,
    segments: Segments | None,
    positions: Positions | None,
) -> tuple[Float[Array, "B T G R V"], Float[Array, "B T G R"]]:
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    return _at_once(q, k, v, offset, scoring, segments, positions)


def _at_once(
    q: Float[Array, "B T G R K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    offset: Offset,
    scoring: Scoring,
    segments: Segments | None,
    positions: Positions | None,
) -> tuple[Float[Array, "B T G R V"], Float[Array, "B T G R"]]:
    """All T x S scores, softmax and sum; in fp32."""
    B, T, G, R, _ = q.shape
    query, key = jnp.asarray(offset), jnp.arange(k.shape[1])
    if query.ndim == 0:
        query = query + jnp.arange(T)
    query = query[None] if query.ndim == 1 else query
    seen = scoring.visible(query[..., None], key[None, None])
    if segments is not None:
        seen &= segments[0][:, :, None] == segments[1][:, None, :]
    # plain batches of matrix products: of a sum over more axes XLA makes copies, transposed
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # as a cache lies (`lcx.sparsity.growing.Buffer`)
    q = q.transpose(0, 2, 3, 1, 4).reshape(B, G, R * T, -1)
    products = jnp.einsum("bgqk,bgsk->bgqs", q, k, preferred_element_type=jnp.float32)
    scores = scoring.scores(products.reshape(B, G, R, T, -1))
    if positions is not None:
        scores += scoring.bias(*positions).reshape(scores.shape)
    weights, total, lse = _softmax(scores, seen[:, None, None])
    weights = weights.astype(v.dtype).reshape(B, G, R * T, -1)
    o = jnp.einsum("bgqs,bgsv->bgqv", weights, v, preferred_element_type=jnp.float32)
    o = o.reshape(B, G, R, T, -1) / total[..., None]
    return o.transpose(0, 3, 1, 2, 4), lse.transpose(0, 3, 1, 2)
