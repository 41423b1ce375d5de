"""A model that writes: prompts read in pieces, then a token at a time from the state."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from lcx import spec
from lcx.data import Tokenizer
from lcx.decoding import Decoding, Ends, Found, Greedy, OneByOne, Read, Search, Seen
from lcx.generate.guarded import Guarded, guarded
from lcx.generate.stops import StopStrings
from lcx.generate.written import NOTHING, Begun, Part, Written, joined
from lcx.model import BEGIN, LM, PerToken
from lcx.parallel.mesh import ROWS, Mesh, place
from lcx.repetition.loops import RepetitionGuard, Resample, Separate
from lcx.streaming import Streamer
from lcx.types import Batch, Ids, Params, State
from lcx.wording import plural

GREEDY, ONE_DEVICE = Greedy(), Mesh()

STEPS = 16
"""Tokens that are written at a time, before anybody looks at them."""
SMALLEST = 256
"""Tokens that a state has room for at least; for more, as many as the next power of two."""


class Generator:
    """Writes on from prompts by one decoding or search, row by row side by side.

    A row's text depends on its prompt, the parameters and its seed alone: other rows, padding and
    the sizes of pieces change nothing but rounding; where positions depend on a text's length, so
    does `new`. Compilations: one of each size of a prompt's pieces, and one of `STEPS` steps for
    each number of rows and power of two of tokens.
    """

    def __init__(
        self,
        model: LM,
        params: Params,
        decoding: Decoding | Search = GREEDY,
        stop: Sequence[int] = (),
        stop_strings: Sequence[str] = (),
        tokenizer: Tokenizer | None = None,
        cut: Mesh = ONE_DEVICE,
    ):
        """stop: ids that end a text. stop_strings: what ends it before them, in letters.

        tokenizer: what spells them; of a model whose vocabulary is larger no other ids are written.
        Raises ValueError for a mesh that cuts sequences, ids that there are not, strings without a
        tokenizer or under a search that compares whole texts, and a decoding that is none.
        """
        if cut.seq > 1:
            raise ValueError(
                f"a token at a time cannot be cut along a sequence: mesh.seq={cut.seq}"
            )
        self._model, self._params, self._cut = model, params, cut
        self._stops, self._tokenizer = jnp.asarray(sorted(stop), jnp.int32), tokenizer
        self._strings = None
        if stop_strings:
            self._strings = StopStrings(stop_strings, self._spelling("stop_strings"))
        self._streamer = Streamer(model, params, cut)
        _check_ids("stop", np.array(sorted(stop), np.int32), model)
        tokens = model.vocabulary if tokenizer is None else tokenizer.vocab_size
        self._known = np.arange(model.vocabulary) < tokens
        # a second copy of the weights: made when first needed, and one for all decodings
        self._per_token = cache(lambda: jax.jit(model.per_token)(params))
        self._others: dict[Decoding | Search, Generator] = {}
        self._compile(decoding)

    def by(self, decoding: Decoding | Search) -> "Generator":
        """The same model by another decoding; what it has compiled is kept."""
        if decoding not in self._others:
            self._others[decoding] = copy(self)
            self._others[decoding]._compile(decoding)
        return self._others[decoding]

    def side_by_side(self, longest: int, new: int) -> int:
        """How many prompts of at most so many tokens are written on from at a time, at best."""
        capacity, piece = self._capacity(longest, new), self._streamer.piece(longest)
        return max(1, self._streamer.rows(piece, capacity) // self._search.rows)

    def _compile(self, decoding: Decoding | Search) -> None:
        if not isinstance(decoding, Decoding | Search):
            raise ValueError(f"decoding: {decoding} is none; Greedy() is one")
        spec.check(decoding, "decoding")
        search = decoding if isinstance(decoding, Search) else OneByOne(decoding)
        if self._strings is not None and not search.steady:
            raise ValueError(
                f"stop_strings: {decoding} compares whole texts, and would not know of the end; "
                "stop tokens end them"
            )
        model, known = self._model, self._known

        def read(
            params: Params,
            hidden: Float[Array, "B D"],
            state: State,
            per_token: PerToken | None = None,
        ) -> Read:
            logits = model.logits(params, hidden, per_token)
            return Read(hidden, jnp.where(known, logits, -jnp.inf), state)

        def begin(
            params: Params,
            last: Float[Array, "prompts D"],
            hidden: Float[Array, "prompts t D"] | None,
            state: State,
            seen: Seen,
            ends: Ends,
        ):
            if hidden is not None:
                hidden = _to_the_front(hidden, seen)
            return search.begin(read(params, last, state), seen, hidden, ends)

        def steps(
            params: Params,
            per_token: PerToken,
            going: Any,
            keys: Key[Array, " prompts"],
            ends: Ends,
        ):
            def reader(tokens: Int[Array, " B"], state: State) -> Read:
                batch = Batch(tokens[:, None], segments=jnp.ones((len(tokens), 1), jnp.int32))
                out = model.hidden(params, batch, state, per_token=per_token)
                return read(params, out.x[:, 0], out.state, per_token)

            def body(going: Any, _: None):
                return search.step(going, keys, reader, ends), None

            going = jax.lax.scan(body, going, None, length=STEPS)[0]
            return going, search.found(going), search.over(going)

        rows = NamedSharding(self._streamer.mesh, PartitionSpec(ROWS))
        self._search, self._rows = search, rows
        self._begin: Callable = jax.jit(begin, out_shardings=rows)
        self._steps: Callable = jax.jit(steps, donate_argnums=2, out_shardings=rows)

    def write(
        self,
        prompts: Sequence[Ids],
        new: int,
        seed: int = 0,
        guard: RepetitionGuard | None = None,
    ) -> list[Written]:
        """What follows each prompt, of at most `new` tokens. Row i has the seed `seed + i`.

        guard: watches each text, and acts where one begins to loop. Raises ValueError as `stream`.
        """
        if guard is not None:
            self._check(prompts, new)
            act = guard.act
            otherwise = self.by(act.decoding) if isinstance(act, Resample) else self
            separator: list[int] = []
            if isinstance(act, Separate):
                separator = self._spelling("Separate").encode(act.text.encode()).tolist()
                if self._strings and self._strings.cut(np.array(separator, np.int32)) is not None:
                    raise ValueError(f"{act} holds a stop string, and would end each text")
            texts = [
                Guarded(prompt, new, guard, seed + i, separator) for i, prompt in enumerate(prompts)
            ]
            return guarded(self.continued, otherwise.continued, texts)
        found = [NOTHING for _ in prompts]
        for parts in self.stream(prompts, new, seed):
            found = [joined(a, b) for a, b in zip(found, parts, strict=True)]
        return found

    def stream(self, prompts: Sequence[Ids], new: int, seed: int = 0) -> Iterator[list[Written]]:
        """What is added to each prompt, some tokens at a time, until all have ended.

        Texts that a search may take back, as beams, come whole at their end. Raises ValueError for
        an empty prompt, and for texts that would become longer than the vectors of positions that
        the model has learned.
        """
        self._check(prompts, new)
        begun = [
            Begun(text, len(text), new, len(text) + new, jax.random.key(seed + i))
            for i, text in enumerate(prompts)
        ]
        for parts in self.continued(begun):
            yield [part.added for part in parts]

    def best(self, prompts: Sequence[Ids], new: int, results: int) -> list[list[Written]]:
        """The best texts of each prompt, the best first; fewer where fewer were found.

        Raises ValueError as `stream`, for a decoding that compares no texts, and where a search
        keeps fewer.
        """
        kept = 1 if self._search.steady else self._search.rows
        if self._search.steady or not 1 <= results <= kept:
            raise ValueError(f"the {results} best of a prompt: {self._search} keeps {kept}")
        self._check(prompts, new)
        key = jax.random.key(0)  # nothing is drawn
        begun = [Begun(text, len(text), new, len(text) + new, key) for text in prompts]
        *_, (found, _) = self._found(begun)
        there = np.isfinite(found.score)
        return [
            [self._text(found, i, j, len(prompt))[0] for j in range(results) if there[i, j]]
            for i, prompt in enumerate(prompts)
        ]

    def continued(self, begun: Sequence[Begun]) -> Iterator[list[Part]]:
        """What is added to texts that were begun, some tokens at a time, until all have ended."""
        shown = [len(text.tokens) - text.prompt for text in begun]
        parts = [Part(n, NOTHING, over=False) for n in shown]
        for found, over in self._found(begun):
            for i, text in enumerate(begun):
                part = parts[i]
                if part.over or not (over[i] or self._search.steady):
                    parts[i] = part._replace(added=part.added._replace(tokens=NOTHING.tokens))
                    continue
                written, cut = self._text(found, i, 0, text.prompt)
                ended = cut or bool(over[i])
                upto = len(written.tokens) if ended else self._settled(written.tokens)
                kept = min(shown[i], len(written.tokens)) if cut else shown[i]
                added = written._replace(tokens=written.tokens[kept:upto])
                shown[i], parts[i] = max(shown[i], upto), Part(kept, added, ended)
            yield [*parts]
            if all(part.over for part in parts):
                return

    def _found(
        self, begun: Sequence[Begun]
    ) -> Iterator[tuple[Found, Bool[np.ndarray, " prompts"]]]:
        """What was found after each `STEPS` tokens, and which rows are over, until all are."""
        spare = -len(begun) % self._cut.rows  # rows for devices that would have none
        texts, prompts, new, becomes, keys = zip(*begun, *[begun[-1]] * spare, strict=True)
        capacity = self._capacity(max(map(len, texts)), max(new))
        tokens = np.zeros((len(texts), capacity), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = text
        lengths = np.array([len(text) for text in texts], np.int32)
        limits = lengths + np.array(new, np.int32)
        with jax.set_mesh(self._streamer.mesh):
            last, state, hidden = self._streamer.prefill(
                texts, np.array(becomes, np.int32), capacity, self._search.looks_back
            )
            by_row = (tokens, lengths, np.array(prompts, np.int32), limits, jnp.stack(keys))
            *seen, limit, of_rows = (place(array, self._rows) for array in by_row)
            ends = Ends(self._stops, limit)
            going = self._begin(self._params, last, hidden, state, Seen(*seen), ends)
            over = np.zeros(len(texts), bool)
            while not over.all():
                going, *shown = self._steps(self._params, self._per_token(), going, of_rows, ends)
                found, over = jax.device_get(shown)
                yield found, over

    def _capacity(self, longest: int, new: int) -> int:
        """Tokens that states have room for: few sizes, each of which is compiled."""
        room = sum(self._streamer.pieces(longest)) + -(-new // STEPS) * STEPS
        return max(SMALLEST, 1 << (room - 1).bit_length())

    def _text(self, found: Found, i: int, j: int, prompt: int) -> tuple[Written, bool]:
        """Text j of prompt i, and whether a stop string has ended it."""
        ids = np.asarray(found.tokens[i, j, prompt : found.length[i, j]])
        text = Written(ids, bool(found.stopped[i, j]), float(found.score[i, j]))
        kept = None if self._strings is None else self._strings.cut(ids)
        return (text, False) if kept is None else (text._replace(tokens=kept, stopped=True), True)

    def _settled(self, ids: Ids) -> int:
        return len(ids) if self._strings is None else self._strings.settled(ids)

    def _spelling(self, what: str) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError(f"{what} takes a tokenizer: Generator(..., tokenizer=...)")
        return self._tokenizer

    def _check(self, prompts: Sequence[Ids], new: int) -> None:
        if not prompts:
            raise ValueError("there is no prompt to go on from")
        for number, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(f"prompt {number} is empty; a text begins with BOS at least")
            _check_ids(f"prompt {number}", prompt, self._model)
        if new < 1:
            raise ValueError(f"at least one new token is needed, not {new}")
        learned, longest = self._model.positions, max(map(len, prompts))
        before = int(self._params[BEGIN]) if BEGIN in self._params else 0
        total = before + longest + new
        if learned is not None and total > learned.capacity:
            virtual = f"{plural(before, 'virtual token')}, " if before else ""
            raise ValueError(
                f"{virtual}a prompt of {longest} tokens and {new} new ones are {total}; the model "
                f"has learned vectors of {learned.capacity} positions"
            )


def _check_ids(what: str, ids: Ids, model: LM) -> None:
    wrong = ids[(ids < 0) | (ids >= model.vocabulary)]
    if len(wrong):
        raise ValueError(
            f"{what}: token {wrong[0]} is not among the {model.vocabulary} ids of the model"
        )


def _to_the_front(
    hidden: Float[Array, "prompts t D"], seen: Seen
) -> Float[Array, "prompts length D"]:
    """What was padded in front, padded behind, as tokens are."""
    t, S = hidden.shape[1], seen.tokens.shape[1]
    at = jnp.arange(S) + (t - seen.length[:, None])
    return jnp.take_along_axis(hidden, jnp.minimum(at, t - 1)[..., None], axis=1)
