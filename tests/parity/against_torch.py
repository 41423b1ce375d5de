"""What the comparisons with torch share: weights and gradients carried over, and lcx's side."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcx.checking.trial import compiled
from lcx.logits import over_logits
from lcx.losses import CrossEntropy
from lcx.model import LM
from lcx.types import Batch, Params, State

PIECES = (1, 7, 33, 1, 7, 33, 7, 7)
NEEDED = "comparisons with transformers need: pip install -e '.[parity]'"


def randomise(module: Any) -> None:
    """Draw every parameter anew, none of them near a value at which it would do nothing."""
    rng = np.random.default_rng(0)
    for name, parameter in module.named_parameters():
        a = parameter.detach().numpy()  # the module's own memory
        if "time_mix" in name:
            a[...] = rng.uniform(0, 1, a.shape)
        elif name.endswith(
            ("time_decay", "A_log")
        ):  # to 1/e in anything from 100 tokens to half a token
            a[...] = rng.uniform(-4.6, 0.7, a.shape)
        elif name.endswith("recurrent_param"):  # with these gates, a^2 is far enough from 1 that
            a[...] = rng.uniform(-3, 0, a.shape)  # transformers' sqrt(1 - a^2) has its digits
        elif name.endswith("gate_weight"):
            a[...] = rng.normal(0, 0.3 * a.shape[1] ** -0.5, a.shape)
        elif a.ndim == 2:
            a[...] = rng.normal(0, a.shape[1] ** -0.5, a.shape)
        elif name.endswith("weight"):  # of a norm
            a[...] = rng.uniform(0.5, 1.5, a.shape)
        else:
            a[...] = rng.normal(0, 0.5, a.shape)


def to_lcx(model: LM, tensors: dict[str, Any], names: dict[str, str]) -> Params:
    """The tree that `model.init` makes, filled from the tensors of a torch module.

    `names` leads from a leaf (in a block: without its place) to a tensor (its layer as `{}`).
    Raises KeyError for a leaf without a tensor, ValueError for a tensor without a leaf.
    """
    unused = set(tensors)
    places = len(model.pattern)

    def tensor(name: str, leaf: str) -> np.ndarray:
        unused.discard(name)
        a = tensors[name].detach().numpy().squeeze()  # RWKV's mixes are [1, 1, D] there
        return a.T if leaf.endswith("kernel") else a

    def fill(path, like):
        leaf = _name(path)
        if leaf.startswith("blocks."):
            _, place, leaf = leaf.split(".", 2)
            layers = range(int(place), places * model.repeats, places)
            a = np.stack([tensor(names[leaf].format(layer), leaf) for layer in layers])
        else:
            a = tensor(names[leaf], leaf)
        if a.shape != like.shape:
            raise ValueError(f"{leaf}: the tensor is {a.shape}, the leaf {like.shape}")
        return jnp.array(a)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(fill, shapes)
    if unused:
        raise ValueError(f"tensors without a leaf: {sorted(unused)}")
    return params


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def assert_leaves_close(actual: Params, expected: Params, within: float) -> None:
    """Each leaf differs by at most `within` times its largest expected entry.

    Leaves below a hundredth of the largest of all are held against that: the gradient of a key's
    bias is 0 without RoPE, since it moves all scores of a query alike, and what is left of it is
    rounding.
    """
    least = 1e-2 * max(np.abs(np.asarray(b)).max() for b in jax.tree.leaves(expected))

    def error(a, b):
        a, b = np.asarray(a), np.asarray(b)
        return np.abs(a - b).max() / (max(np.abs(b).max(), least) or 1.0)

    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(error, actual, expected))
    far = {_name(path): float(e) for path, e in errors if not e <= within}
    assert not far, far


def loss_and_gradients(model: LM, params: Params, tokens: np.ndarray) -> tuple[float, Params]:
    """The mean loss, in nats, of each token but a row's first; and its gradients."""

    @compiled
    @jax.value_and_grad
    def loss(params, tokens):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        lengths = jnp.full(inputs.shape, tokens.shape[1])  # torch reads the last token, too
        batch = Batch(inputs, lengths=lengths, targets=targets)
        x = model.hidden(params, batch).x
        sums = CrossEntropy()(x, batch, partial(over_logits, model, params))
        return sums.minimised / targets.size

    value, gradients = loss(params, tokens)
    return float(value), gradients


def stream(
    call: Callable,
    params: Params,
    tokens: np.ndarray,
    state: State,
    pieces: tuple[int, ...] = PIECES,
) -> tuple[np.ndarray, State]:
    """Logits of a text that the jitted model reads in pieces, and the state after it."""
    assert sum(pieces) == tokens.shape[1]
    logits = []
    for piece in np.split(tokens, np.cumsum(pieces)[:-1], axis=1):
        out, state, _ = call(params, Batch(piece), state)
        logits.append(np.asarray(out))
    return np.concatenate(logits, axis=1), state
