"""Text out of a model: prompts read in pieces, then a token at a time from the state."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from lcx import spec
from lcx.decoding import Decoding, Greedy, Seen
from lcx.model import LM, PerToken
from lcx.parallel.mesh import ROWS, Mesh, place
from lcx.streaming import Streamer
from lcx.types import Batch, Params, State

GREEDY, ONE_DEVICE = Greedy(), Mesh()

STEPS = 16
"""Tokens that are written at a time, before anybody looks at them."""
SMALLEST = 256
"""Tokens that a state has room for at least; for more, as many as the next power of two."""

Ids = Int[np.ndarray, "_"]


class Written(NamedTuple):
    """What was written after one prompt."""

    tokens: Ids
    """Without the prompt, and without the stop token."""
    stopped: bool
    """Whether a stop token ended it, and not the number of tokens."""


class _Going(NamedTuple):
    """What one step of writing hands to the next."""

    logits: Float[Array, "B V"]
    state: State
    seen: Seen
    done: Bool[Array, " B"]


class Generator:
    """Writes on from prompts by one decoding, row by row side by side.

    A row's text depends on its prompt, the parameters and its seed alone: other rows, padding and
    the sizes of pieces change nothing but rounding. Compilations: one of each size of a prompt's
    pieces, and one of `STEPS` steps for each number of rows and power of two of tokens.
    """

    def __init__(
        self,
        model: LM,
        params: Params,
        decoding: Decoding = GREEDY,
        stop: Sequence[int] = (),
        tokens: int | None = None,
        cut: Mesh = ONE_DEVICE,
    ):
        """stop: ids that end a text. tokens: ids that the tokenizer has; None: the model's, all.

        Raises ValueError for a mesh that cuts sequences, and for a decoding that is none.
        """
        spec.check(decoding, "decoding")
        if cut.seq > 1:
            raise ValueError(
                f"a token at a time cannot be cut along a sequence: mesh.seq={cut.seq}"
            )
        self._model, self._params, self._cut = model, params, cut
        self._streamer = Streamer(model, params, cut)
        self._rows = NamedSharding(self._streamer.mesh, PartitionSpec(ROWS))
        ends = jnp.asarray(sorted(stop), jnp.int32)

        known = np.arange(model.vocabulary) < (tokens or model.vocabulary)

        def first(
            params: Params, x: Float[Array, "B D"], per_token: PerToken | None = None
        ) -> Float[Array, "B V"]:
            return jnp.where(known, model.logits(params, x, per_token), -jnp.inf)

        def step(params: Params, per_token: PerToken, going: _Going, keys: Key[Array, " B"]):
            logits, state, seen, done = going
            drawn = jax.vmap(jax.random.fold_in)(keys, seen.length - seen.prompt)
            token = decoding.choose(drawn, logits, seen)
            over = done | (token[:, None] == ends).any(axis=1)
            at = jnp.where(over, seen.tokens.shape[1], seen.length)  # beyond the end: not written
            text = seen.tokens.at[jnp.arange(len(token)), at].set(token, mode="drop")
            seen = Seen(text, seen.length + ~over, seen.prompt)
            ones = jnp.ones((len(token), 1), jnp.int32)
            out = model.hidden(
                params, Batch(token[:, None], segments=ones), state, per_token=per_token
            )
            return _Going(first(params, out.x[:, 0], per_token), out.state, seen, over)

        def steps(
            params: Params, per_token: PerToken, going: _Going, keys: Key[Array, " B"]
        ) -> _Going:
            def body(going: _Going, _: None):
                return step(params, per_token, going, keys), None

            return jax.lax.scan(body, going, None, length=STEPS)[0]

        self._first: Callable = jax.jit(first, out_shardings=self._rows)
        self._steps: Callable = jax.jit(steps, donate_argnums=2, out_shardings=self._rows)

    def write(self, prompts: Sequence[Ids], new: int, seed: int = 0) -> list[Written]:
        """What follows each prompt, of at most `new` tokens. Row i has the seed `seed + i`.

        Raises ValueError as `stream` does.
        """
        found = [Written(np.zeros(0, np.int32), False) for _ in prompts]
        for parts in self.stream(prompts, new, seed):
            found = [
                Written(np.concatenate([a.tokens, b.tokens]), b.stopped)
                for a, b in zip(found, parts, strict=True)
            ]
        return found

    def stream(self, prompts: Sequence[Ids], new: int, seed: int = 0) -> Iterator[list[Written]]:
        """What is added to each prompt, some tokens at a time, until all have ended.

        Raises ValueError for an empty prompt, and for texts that would become longer than the
        vectors of positions that the model has learned.
        """
        self._check(prompts, new)
        rows = -(-len(prompts) // self._cut.rows) * self._cut.rows
        texts = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
        longest = max(map(len, texts))
        room = sum(self._streamer.pieces(longest)) + -(-new // STEPS) * STEPS
        capacity = max(SMALLEST, 1 << (room - 1).bit_length())
        keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + rows))
        with jax.set_mesh(self._streamer.mesh):
            x, state = self._streamer.prefill(texts, new, capacity)
            tokens = np.zeros((rows, capacity), np.int32)
            for row, text in zip(tokens, texts, strict=True):
                row[: len(text)] = text
            lengths = np.array([len(text) for text in texts], np.int32)
            seen = Seen(*(place(array, self._rows) for array in (tokens, lengths, lengths)))
            done = place(np.zeros(rows, bool), self._rows)
            going = _Going(self._first(self._params, x), state, seen, done)
            before = lengths
            limit = lengths + new
            while True:
                going = self._steps(self._params, self._per_token, going, keys)
                tokens, after, done = map(
                    np.asarray, (going.seen.tokens, going.seen.length, going.done)
                )
                yield [
                    Written(tokens[i, before[i] : min(after[i], limit[i])], bool(done[i]))
                    for i in range(len(prompts))
                ]
                if (done | (after >= limit)).all():
                    return
                before = after

    @cached_property
    def _per_token(self) -> PerToken:
        return jax.jit(self._model.per_token)(self._params)

    def _check(self, prompts: Sequence[Ids], new: int) -> None:
        if not prompts:
            raise ValueError("there is no prompt to go on from")
        for number, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(f"prompt {number} is empty; a text begins with BOS at least")
        if new < 1:
            raise ValueError(f"at least one new token is needed, not {new}")
        learned, longest = self._model.positions, max(map(len, prompts))
        if learned is not None and longest + new > learned.capacity:
            raise ValueError(
                f"a prompt of {longest} tokens and {new} new ones are {longest + new}; the model "
                f"has learned vectors of {learned.capacity} positions"
            )
