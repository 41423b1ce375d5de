"""Documents that begin from something learned: what softmax attention and recurrences take of it.

A state that stands in place of nothing before a document's first token is in the block whose
sublayer reads it (`Context.initial`); whoever puts it there also says at which position documents
then begin.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lcx.block import BlockState
from lcx.mixers import SoftmaxAttention
from lcx.mixers.softmax_attention import VirtualKeys
from lcx.model import BEGIN, LM
from lcx.sparsity import Full
from lcx.sparsity.growing import GrowingCache
from lcx.types import Batch, Context, Params, State, Sublayer

Places = Mapping[tuple[int, str], State]
"""States of one row, stacked over repeats [L ...], by a block's place in the pattern and the name
of its sublayer."""


def with_beginning(
    params: Params, states: Places, first: int, added: Mapping[str, nnx.Variable]
) -> Params:
    """The tree, with documents that begin from these states, at the position `first`.

    What is learned stays in the tree, too: states that are computed from it are rounded otherwise
    on another mesh, and a fingerprint has to be the same.
    """

    def with_own(place: int, block: Params) -> Params:
        own = {f"{name}_initial": nnx.data(s) for (at, name), s in states.items() if at == place}
        return nnx.Dict(**dict(block.items()), **own)

    blocks = [with_own(place, block) for place, block in enumerate(params.blocks)]
    at = nnx.data(jnp.asarray(first, jnp.int32))
    changed = {"blocks": nnx.List(blocks), BEGIN: at}
    learned = nnx.Dict(**{path.replace(".", "_"): leaf for path, leaf in added.items()})
    return nnx.Dict(**dict(params.items()) | changed, learned=learned)


def check_sizes(tuning: object) -> None:
    """Raise ValueError for sizes that are not positive."""
    for name in ("tokens", "hidden"):
        size = getattr(tuning, name, None)
        if size is not None and size < 1:
            raise ValueError(f"{type(tuning).__name__}: {name} must be at least 1, not {size}")


class NotMerged:
    """A method that documents begin from: no plain model's do."""

    def merge(self, params: Params, added: Mapping[str, nnx.Variable]) -> Params:
        raise ValueError(
            f"{type(self).__name__}: the documents of a plain model begin from nothing, so that it "
            "cannot be merged. No variant can start from such a run, and it is no model to be "
            "exported; LoRA is"
        )


def mixer_names(model: LM) -> str:
    """For messages: the classes of a model's mixers."""
    return ", ".join(dict.fromkeys(type(block.mixer).__name__ for block in model.pattern))


def drawn_embeddings(base: Params, tokens: int, rngs: nnx.Rngs) -> Float[Array, "n D"]:
    """Those of tokens drawn from the vocabulary, all as likely.

    Lester et al. 2021, section 3.2, draw from the most frequent, which a model does not know.
    """
    table = base.embed.embedding[...]
    return table[jax.random.randint(rngs.params(), (tokens,), 0, table.shape[0])]


def after_tokens(
    model: LM, params: Params, embeddings: Float[Array, "n D"]
) -> dict[tuple[int, str], State]:
    """The states after n tokens with these embeddings, which stand at positions 0 to n - 1.

    They are read in one row, whatever the number of documents: no token depends on what follows
    it. In softmax attention each sees all before it, whatever the sparsity.
    """
    dense = tuple(replace(block, mixer=_dense(block.mixer)) for block in model.pattern)
    reads, count = replace(model, pattern=dense), len(embeddings)
    tokens = Batch(jnp.arange(count, dtype=jnp.int32)[None])
    own = dict(params.items()) | {"embed": nnx.Dict(embedding=nnx.Param(embeddings))}

    @jax.jit
    def read(tree: Params) -> list[BlockState]:
        return reads.hidden(tree, tokens, reads.init_state(1, count)).state.layers

    after = read(nnx.Dict(**own))
    found: dict[tuple[int, str], State] = {}
    for place, block in enumerate(model.pattern):
        for name in block.sublayers:
            layers = after[place :: len(model.pattern)]
            states = [begun(getattr(layer, name), count) for layer in layers]
            if jax.tree.leaves(states):
                found[place, name] = jax.tree.map(lambda *each: jnp.stack(each), *states)
    return found


def _dense(mixer: Sublayer) -> Sublayer:
    """The same parameters, without a sparsity."""
    return replace(mixer, sparsity=Full()) if isinstance(mixer, SoftmaxAttention) else mixer


def begun(state: State, count: int) -> State:
    """What documents begin from, of the state after `count` tokens: of a cache, its entries."""
    if not isinstance(state, GrowingCache):
        return state
    k, v = (
        jnp.concatenate([getattr(buffer, name) for buffer in state.buffers], axis=2)
        for name in ("k", "v")
    )
    return VirtualKeys(*(a[:, :, :count].swapaxes(1, 2) for a in (k, v)))


def turns_alike(mixer: SoftmaxAttention, model: LM) -> bool:
    """Whether positions are encoded alike in texts of any length."""
    width = mixer.key_width(model.dims)

    def keys(length: int) -> Array:
        one, at = jnp.ones((1, 1, 1, width)), jnp.ones((1, 1), jnp.int32)
        return mixer.position(one, one, Context(at, lengths=length * at))[1]

    with jax.ensure_compile_time_eval():
        return bool((keys(1) == keys(2**30)).all())
