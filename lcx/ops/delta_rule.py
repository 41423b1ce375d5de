"""Delta rules: recurrences that replace what the state holds for a key, where others add to it.

One decay a head (Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464, equation 10):

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        o_t = q_t S_t

One decay a feature, and a removal key a and a replacement key b of their own (RWKV-7, Peng et al.
2025, arXiv:2503.14456, equation 17):

    S_t = diag(exp(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T          o_t = q_t S_t

A token that starts a document finds `initial` in place of the state, or nothing.

Within a chunk the reads of the state depend on one another through a triangular system; with its
inverse they are one product with the state that enters the chunk (the WY form of arXiv:2406.06484,
section 3.2). All chunks' systems are solved at once, and a short scan carries the state.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lcx.kernels import FASTEST_THERE_IS, Kernels, chosen
from lcx.ops import chunks
from lcx.ops.gated_linear_attention import MIN_LOG_DECAY, block_of, pairs
from lcx.ops.triangular import inverse
from lcx.parallel import seqpar
from lcx.parallel.seqpar import Affine, Shards


def delta_rule(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    beta: Float[Array, "B T H"],
    *,
    g: Float[Array, "B T H"] | None = None,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K V"] | None = None,
    initial: Float[Array, "1 H K V"] | None = None,
    shards: Shards | None = None,
    chunk: int = 32,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Outputs and the final state (fp32), in time and memory linear in T.

    With G < H, head j of queries and keys serves heads [j H/G, (j+1) H/G) of values, rates and
    decays. Keys are expected to have length 1 and beta to lie in [0, 2]: beyond, the state can grow
    without bound. `g` is the log-decay of each token, at most 0; None: no decay.
    `chunk`: a power of two.
    """
    heads, groups = v.shape[2], q.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} heads of v must be a multiple of the {groups} of q and k")
    chunk = chunks.halving(chunk, q.shape[1])
    if g is None:
        g = jnp.zeros_like(beta)
    if chosen("delta_rule", kernels, q.shape[1]) == "reference":
        q, k = (jnp.repeat(x, heads // groups, axis=2) for x in (q, k))
        write = beta[..., None].astype(jnp.float32) * k.astype(jnp.float32)
        erase = -jnp.exp(g.astype(jnp.float32))[..., None] * k.astype(jnp.float32)
        decay = jnp.broadcast_to(g[..., None], k.shape)
        tokens = (q, write, v, erase, write, decay)
        return _over_shards(_reference, tokens, starts, state, initial, shards)
    run = partial(_in_slabs, partial(_scalar_chunks, chunk))
    tokens = (q, k, v, beta.astype(jnp.float32), g.astype(jnp.float32))
    return _over_shards(run, tokens, starts, state, initial, shards)


def diagonal_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    a: Float[Array, "B T H K"],
    b: Float[Array, "B T H K"],
    g: Float[Array, "B T H K"],
    *,
    starts: Bool[Array, "B T"] | None = None,
    state: Float[Array, "B H K V"] | None = None,
    initial: Float[Array, "1 H K V"] | None = None,
    shards: Shards | None = None,
    chunk: int = 32,
    min_log_decay: float = MIN_LOG_DECAY,
    kernels: Kernels = FASTEST_THERE_IS,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """As `delta_rule`, with a log-decay `g` a feature, and b a^T in place of -beta k k^T.

    RWKV-7 has a = -kappa and b = kappa * eta for a kappa of length 1 and eta in [0, 1]. `chunk`: a
    power of two. `min_log_decay`: none lies below it; the weaker, the larger matrix products.
    """
    chunk = chunks.halving(chunk, q.shape[1])
    if chosen("diagonal_delta_rule", kernels, q.shape[1]) == "reference":
        return _over_shards(_reference, (q, k, v, a, b, g), starts, state, initial, shards)
    run = partial(_in_slabs, partial(_diagonal_chunks, chunk, min_log_decay))
    tokens = (q, k, v, a, b, g.astype(jnp.float32))
    return _over_shards(run, tokens, starts, state, initial, shards)


def _in_slabs(run, initial, tokens, state):
    return chunks.in_slabs(partial(run, initial), tokens, state)


def _over_shards(run, tokens, starts, state, initial, shards):
    """`run(initial, tokens, state)`, with what other shards leave behind.

    A shard is run once, on a state of nothing. K further columns of values that are 0, from a state
    that is the identity, tell what the shard does to any state, and how each token reads it.
    """
    q, _, v, *rest = tokens
    starts = jnp.zeros((1, q.shape[1]), bool) if starts is None else starts
    if state is None:
        batch, _, heads, width = v.shape
        state = jnp.zeros((batch, heads, q.shape[-1], width), jnp.float32)
    if shards is None:
        return run(initial, (*tokens, starts), state)
    (K, V), identity = state.shape[-2:], jnp.eye(state.shape[-2])
    nothing = jnp.zeros((*v.shape[:-1], K), v.dtype)
    identity = jnp.broadcast_to(identity, (*state.shape[:-1], K))
    wide = (q, tokens[1], jnp.concatenate([v, nothing], axis=-1), *rest, starts)
    if initial is not None:  # what does not come from before is none of the further columns'
        initial = jnp.pad(initial, [(0, 0)] * 3 + [(0, K)])
    o, S = run(initial, wide, jnp.concatenate([jnp.zeros_like(state), identity], axis=-1))
    own = Affine(S[..., V:], S[..., :V])
    entering = seqpar.entering(own, state, shards, seqpar.multiplied)
    o, read = o[..., :V], o[..., V:]
    more = jnp.einsum("bthk,bhkv->bthv", read, entering.astype(read.dtype))
    return o + more.astype(o.dtype), seqpar.last(own.factor @ entering + own.added, shards)


def _reference(initial, tokens, state):
    """The recurrence of the second form, token by token."""
    q, k, v, a, b, g, starts = tokens
    found = 0.0 if initial is None else initial

    def step(S, token):
        q, k, v, a, b, g, start = token
        S = jnp.where(start[:, None, None, None], found, S)
        read = jnp.einsum("bhk,bhkv->bhv", a, S)
        S = jnp.exp(g)[..., None] * S + b[..., None] * read[..., None, :]
        S = S + k[..., None] * v[..., None, :]
        return S, jnp.einsum("bhk,bhkv->bhv", q, S)

    fp32 = [x.astype(jnp.float32) for x in (q, k, v, a, b, g)]
    by_token = tuple(jnp.moveaxis(x, 1, 0) for x in (*fp32, starts))
    state, o = jax.lax.scan(step, state, by_token)
    return jnp.moveaxis(o, 0, 1).astype(q.dtype), state


def _split(chunk, tokens):
    """[B, T, H, ...] -> [B, N, H, C, ...] in fp32; starts and the documents' numbers [B, N, C]."""
    *tokens, starts = tokens
    split = [jnp.swapaxes(chunks.split(x, chunk), 2, 3).astype(jnp.float32) for x in tokens]
    starts = chunks.split(starts, chunk)
    return split, starts, jnp.cumsum(starts, axis=-1)


def _scalar_chunks(chunk, initial, tokens, state):
    dtype, length = tokens[0].dtype, tokens[0].shape[1]
    (q, k, v, beta, g), starts, document = _split(chunk, tokens)
    q, k = (jnp.repeat(x, v.shape[2] // x.shape[2], axis=2) for x in (q, k))
    g = jnp.maximum(g, MIN_LOG_DECAY)
    sums = chunks.Sums.of(g, MIN_LOG_DECAY)
    decay = sums.total
    document = document[:, :, None]
    last = document[..., -1:]
    seen = jnp.tril(document[..., :, None] == document[..., None, :])
    between = jnp.exp(sums.between(seen))
    from_start = (jnp.exp(decay) * (document == 0))[..., None]
    to_end = (jnp.exp(sums.to_end()) * (document == last))[..., None]

    # What is written for a token: its value less what the state held for its key, which the tokens
    # before it in the chunk have changed: writes = v - (read + pairs writes).
    write = beta[..., None] * k
    solved = inverse(-(k @ write.mT) * between)
    read, own = solved @ -(from_start * k), solved @ v  # of the entering state, and without it
    kept = (jnp.exp(decay[..., -1]) * (last[..., 0] == 0))[..., None, None]
    added = jnp.zeros((*state.shape[:1], k.shape[1], *state.shape[1:]))
    found = None
    if initial is not None:  # stands before a document's first token
        first = jnp.exp(g) * starts[:, :, None]
        left = (between * first[..., None, :]).sum(axis=-1)[..., None]
        own -= solved @ ((left * k) @ initial[0])
        added += left[..., -1:, :] * initial[0]
        found = (left * q) @ initial[0]
    after, entering, writes = _cross(read, own, (to_end * write).mT, added, kept, state)
    o = (from_start * q) @ entering + ((q @ write.mT) * between) @ writes
    o = o if found is None else o + found
    return chunks.join(jnp.swapaxes(o, 2, 3), length).astype(dtype), after


def _diagonal_chunks(chunk, min_log_decay, initial, tokens, state):
    dtype, length = tokens[0].dtype, tokens[0].shape[1]
    (q, k, v, a, b, g), starts, document = _split(chunk, tokens)
    g = jnp.maximum(g, min_log_decay)
    after = chunks.running_sum(g)  # the decay from the chunk's start to behind each token
    before = after - g
    document = document[:, :, None]
    last = document[..., -1:]
    fresh = (document == 0)[..., None]
    to_end = jnp.exp(after[..., -1:, :] - after) * (document == last)[..., None]

    # Each token counts as two, which turns four kinds of pairs into one product: a reads what the
    # tokens before have added with b and k, then q also what its own token has.
    scores = pairs(
        *(_in_turn(x, y) for x, y in ((a, q), (b, k), (before, after), (after, after))),
        block=2 * block_of(min_log_decay, chunk),
    )
    index = jnp.arange(chunk)
    earlier = index[:, None] > index
    seen = jnp.stack([earlier, earlier | jnp.eye(chunk, dtype=bool)], axis=1)
    seen = seen & (document[..., :, None] == document[..., None, :])[..., :, None, :]
    scores = scores.reshape(*scores.shape[:-2], chunk, 2, chunk, 2)
    scores = jnp.where(seen[..., None], scores, 0.0)
    a_pairs, q_pairs = scores[..., 0, :, :], scores[..., 1, :, :]

    # What a token reads of the state, which the tokens before it in the chunk have changed:
    # reads = a S + pairs(a, b) reads + pairs(a, k) v.
    solved = inverse(a_pairs[..., 0])
    read = solved @ (a * jnp.exp(before) * fresh)  # of the entering state
    own = solved @ (a_pairs[..., 1] @ v)  # and of the chunk's
    kept = (jnp.exp(after[..., -1, :]) * (last == 0))[..., None]
    added = (k * to_end).mT @ v
    found = None
    if initial is not None:  # stands before a document's first token
        first = chunks.at_document_starts(before, starts)
        later = (document > 0)[..., None]
        own += solved @ ((a * jnp.exp(before - first) * later) @ initial[0])
        left = jnp.exp(after - first) * later
        added += left[..., -1, :, None] * initial[0]
        found = (q * left) @ initial[0]
    state, entering, reads = _cross(read, own, (b * to_end).mT, added, kept, state)
    o = (q * jnp.exp(after) * fresh) @ entering
    o = o if found is None else o + found
    o = o + q_pairs.reshape(*q_pairs.shape[:-2], -1) @ _in_turn(reads, v)
    return chunks.join(jnp.swapaxes(o, 2, 3), length).astype(dtype), state


def _in_turn(x, y):
    """x_1 y_1 x_2 y_2 ...: [..., C, K] twice -> [..., 2C, K]."""
    return jnp.stack([x, y], axis=-2).reshape(*x.shape[:-2], -1, x.shape[-1])


@jax.custom_vjp
def _cross(
    read: Float[Array, "B N H C K"],
    own: Float[Array, "B N H C V"],
    write: Float[Array, "B N H K C"],
    added: Float[Array, "B N H K V"],
    kept: Float[Array, "B N H k 1"],
    state: Float[Array, "B H K V"],
) -> tuple[Float[Array, "B H K V"], Float[Array, "B N H K V"], Float[Array, "B N H C V"]]:
    """The only thing that chunks must do in turn; k is K or 1.

        y = own + read S        S <- kept * S + added + write y

    Returns the last state, the state before each chunk, and each chunk's y.
    """
    return _in_order(read, own, write, added, kept, state)


def _in_order(read, own, write, added, kept, state, reverse=False):
    def step(S, chunk):
        read, own, write, added, kept = chunk
        y = own + read @ S
        return kept * S + added + write @ y, (S, y)

    by_chunk = [jnp.moveaxis(x, 1, 0) for x in (read, own, write, added, kept)]
    state, (before, y) = jax.lax.scan(step, state, tuple(by_chunk), reverse=reverse)
    return state, jnp.moveaxis(before, 0, 1), jnp.moveaxis(y, 0, 1)


def _cross_forward(read, own, write, added, kept, state):
    out = _in_order(read, own, write, added, kept, state)
    return out, (read, write, kept, *out[1:])


def _cross_backward(saved, gradients):
    """The same recurrence from the end, `read` and `write` in each other's place.

    The weights' gradients are products of all chunks at once, which is why this is written by hand.
    """
    read, write, kept, S, y = saved
    d_state, d_S, d_y = gradients
    d_state, after, d_y = _in_order(write.mT, d_y, read.mT, d_S, kept, d_state, reverse=True)
    d_kept = (after * S).sum(axis=-1, keepdims=True)
    if kept.shape[-2] == 1:
        d_kept = d_kept.sum(axis=-2, keepdims=True)
    return d_y @ S.mT, d_y, after @ y.mT, after, d_kept, d_state


_cross.defvjp(_cross_forward, _cross_backward)
