"""Sees a text begin to loop while it is written."""

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass

from lcx.decoding import Decoding, Search
from lcx.repetition.ngrams import Tokens


@dataclass(frozen=True)
class StopThere:
    """A text that loops ends where the loop began."""


@dataclass(frozen=True)
class Resample:
    """A text that loops is written anew from where the loop began, otherwise for some tokens.

    By more chance, as `Temperature(1.2)`, or with a penalty,
    `Greedy(penalties=(RepetitionPenalty(1.3),))`. Then the decoding that was asked for goes on.
    """

    decoding: Decoding | Search
    tokens: int = 64

    def __post_init__(self):
        if self.tokens < 1:
            raise ValueError(f"Resample: tokens must be at least 1, not {self.tokens}")


@dataclass(frozen=True)
class Separate:
    """A text that loops goes on from where the loop began, after a separator."""

    text: str = "\n\n"

    def __post_init__(self):
        if not self.text:
            raise ValueError("Separate: text is empty: the same loop would follow")


STOP_THERE = StopThere()


@dataclass(frozen=True)
class RepetitionGuard:
    """A text loops where at least `share` of its last `window` n-grams are repeats.

    An n-gram is a repeat if the same one began at most `window` tokens before it. So loops of
    periods up to `window` are seen, each once share * window + n - 1 tokens of it were written
    again, whatever its period; also such in which a number or a name changes from turn to turn.

    The defaults are for words and pieces of words. What people wrote is rarely a loop to them: 0.2%
    of the words of 28 files of Python's standard library, tables among them. Of their bytes, 4 of
    which often come again, 20% would be; with `RepetitionGuard(n=32, window=512)` 0.2% are.
    """

    n: int = 4
    window: int = 128
    share: float = 0.5
    act: StopThere | Resample | Separate = STOP_THERE
    """What `lcx.generate` does to a text that loops."""
    most: int = 8
    """The next loop after so many ends the text, whatever `act` says."""

    def __post_init__(self):
        if self.n < 1:
            raise ValueError(f"RepetitionGuard: n must be at least 1, not {self.n}")
        if self.window < 1:
            raise ValueError(f"RepetitionGuard: window must be at least 1, not {self.window}")
        if not 0 < self.share <= 1:
            raise ValueError(
                f"RepetitionGuard: share must be above 0 and at most 1, not {self.share}"
            )
        if self.most < 0:
            raise ValueError(f"RepetitionGuard: most cannot be negative, not {self.most}")

    def watch(self) -> "Watch":
        """For a text that is being written."""
        return Watch(self)

    def loop(self, tokens: Tokens) -> int | None:
        """Where the loop that the text ends in begins, as `Watch.add` says; None if in none."""
        watch, start = self.watch(), None
        for token in tokens:
            start = watch.add(token)
        return start


class Watch:
    """One text, token by token: O(n) a token, O(window) where a loop begins; O(n window) memory."""

    def __init__(self, guard: RepetitionGuard):
        self.guard = guard
        self._written = 0
        self._last: deque[Hashable] = deque(maxlen=guard.n)
        self._window: deque[tuple[tuple[Hashable, ...], bool]] = deque()
        self._counts: Counter[tuple[Hashable, ...]] = Counter()
        self._repeats = 0  # in the window
        self._start: int | None = None  # of the loop that the text is in

    def add(self, token: Hashable) -> int | None:
        """While the text loops, where that began: the first token that was written again.

        tokens[:start] holds the first turn, and nothing of the second. Where the turns differ, or
        a repeat by chance came shortly before, the place is known to within a few tokens.
        """
        guard = self.guard
        self._last.append(token)
        self._written += 1
        if len(self._last) < guard.n:
            return None
        gram, place = tuple(self._last), self._written - guard.n
        repeat = gram in self._counts
        if len(self._window) == guard.window:
            self._forget()
        self._window.append((gram, repeat))
        self._counts[gram] += 1
        self._repeats += repeat
        if self._repeats / guard.window < guard.share:
            self._start = None
        elif self._start is None:
            self._start = place - self._excess_most()
        return self._start

    def _excess_most(self) -> int:
        """How many n-grams before the last one the stretch begins in which repeats exceed `share`
        most: the change point of Page 1954 (CUSUM)."""
        excess, most, found = 0.0, 0.0, 0
        for back, (_, repeat) in enumerate(reversed(self._window)):
            excess += repeat - self.guard.share
            if repeat and excess >= most:
                most, found = excess, back
        return found

    def _forget(self) -> None:
        """The oldest n-gram leaves the window."""
        gram, repeat = self._window.popleft()
        self._repeats -= repeat
        self._counts[gram] -= 1
        if not self._counts[gram]:
            del self._counts[gram]


def period(tokens: Tokens, start: int) -> int | None:
    """The shortest p with tokens[t] = tokens[t - p] for each t from `start` on.

    None where there is none: turns differ. With a guard's start it is the period of the loop.
    """
    items = list(tokens)
    if not 0 <= start < len(items):
        raise ValueError(f"start: a place among {len(items)} tokens, not {start}")
    end = items[start:]
    for p in range(1, start + 1):
        if items[start - p : len(items) - p] == end:
            return p
    return None
