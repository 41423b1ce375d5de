"""Writing with a guard: texts that begin to loop end there, or go on from there otherwise."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from lcx.generate.written import Begun, Part, Written
from lcx.repetition.loops import RepetitionGuard, Resample, StopThere
from lcx.types import Ids

Continued = Callable[[Sequence[Begun]], Iterator[list[Part]]]
"""`Generator.continued`."""


def guarded(usual: Continued, otherwise: Continued, texts: Sequence["Guarded"]) -> list[Written]:
    """Write the texts. otherwise: by the decoding of `Resample`."""
    while going := [text for text in texts if not text.over]:
        anew = [text for text in going if text.anew]
        together = anew or going
        begun = [text.begun() for text in together]
        # as many rows as ever: another number of them would be compiled anew
        begun += [begun[-1]] * (len(texts) - len(begun))
        for parts in (otherwise if anew else usual)(begun):
            for text, part in zip(together, parts, strict=False):
                if not text.resting:
                    text.add(part)
            if all(text.resting for text in together):
                break
    return [Written(np.array(t.tokens, np.int32), t.stopped, loops=t.loops) for t in texts]


class Guarded:
    """One text while it is written. A loop's tokens are dropped from where it began."""

    def __init__(
        self, prompt: Ids, new: int, guard: RepetitionGuard, seed: int, separator: Sequence[int]
    ):
        """new: tokens at most, those of separators included."""
        self._prompt, self._new, self._guard, self._seed = prompt, new, guard, seed
        self._separator = separator
        self._watch, self._watched = guard.watch(), 0  # from this token on
        self.tokens: list[int] = []
        self.loops = 0
        self.anew = 0
        """Tokens that are to be written otherwise, before it goes on as usual."""
        self.resting = False
        """It waits for the others of the batch, each to loop or to end."""
        self.over = self.stopped = False

    def begun(self) -> Begun:
        """The text, to go on with until anything changes."""
        self.resting = False
        left, key = self._new - len(self.tokens), jax.random.key(self._seed)
        return Begun(
            np.array([*self._prompt, *self.tokens], np.int32),
            len(self._prompt),
            min(left, self.anew or left),
            len(self._prompt) + self._new,
            # after a loop other tokens are drawn than those that led into it
            jax.random.fold_in(key, self.loops) if self.loops else key,
        )

    def add(self, part: Part) -> None:
        del self.tokens[part.kept :]
        for token in part.added.tokens.tolist():
            self.tokens.append(token)
            if (start := self._watch.add(token)) is not None:
                self._mend(self._watched + start)
                return
        if part.over:
            self.resting, self.anew = True, 0
            self.stopped = part.added.stopped
            self.over = self.stopped or len(self.tokens) >= self._new

    def _mend(self, start: int) -> None:
        """It loops, from token `start` on."""
        act = self._guard.act
        self.resting, self.anew = True, 0
        self.tokens = self.tokens[:start]
        self.loops += 1
        if isinstance(act, StopThere) or self.loops > self._guard.most:
            self.over = True
        elif isinstance(act, Resample):
            self.anew = act.tokens
        else:
            self.tokens += self._separator[: self._new - start]
            self.over = len(self.tokens) >= self._new
        # what was written before is forgotten: to come back to it once is no loop yet
        self._watch, self._watched = self._guard.watch(), len(self.tokens)
