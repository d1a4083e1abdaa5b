"""Which of the states that a solve passes are kept, and how a stretch between two of them is run backward.

The number of steps is not known while they are taken: a store is offered the state at the start of every step, in
order, and keeps what its rule says. Counting states, a *snapshot* is one that is kept.
"""

from __future__ import annotations

import bisect
import math

from torch import Tensor

#: The state at the start of a step, and what the stepper carries beside it.
State = tuple[Tensor, ...]


class EveryStep:
    """Keeps every state.

    Attributes
    ----------
    slots : int or None
        Bound of the snapshots held at once, those of a backward pass included.
    """

    slots: int | None = None

    def __init__(self) -> None:
        self._at: list[int] = []
        self._states: list[State] = []

    def offer(self, n: int, state: State) -> None:
        """``state`` at the start of step ``n``, which is one more than the last one offered."""
        self._put(n, state)

    def offer_again(self, n: int, state: State, steps: int) -> None:
        """``state``, which had been dropped and was computed again, of a solve of so many ``steps``."""

    def before(self, n: int) -> int:
        """The last step that starts in a kept state and is not after step ``n``."""
        return self._at[bisect.bisect_right(self._at, n) - 1]

    def after(self, n: int) -> int | None:
        """The first step that starts in a kept state and comes after step ``n``; None if there is none."""
        place = bisect.bisect_right(self._at, n)
        return self._at[place] if place < len(self._at) else None

    def __getitem__(self, n: int) -> State:
        """The kept state at the start of step ``n``."""
        return self._states[bisect.bisect_left(self._at, n)]

    def __len__(self) -> int:
        return len(self._at)

    @property
    def indices(self) -> tuple[int, ...]:
        """Steps whose start is kept, ascending."""
        return tuple(self._at)

    def take(self, start: int) -> list[tuple[int, State]]:
        """The snapshots, ascending, that a backward pass from step ``start`` may use up."""
        stop = bisect.bisect_right(self._at, start)
        return list(zip(self._at[:stop], self._states[:stop], strict=True))

    def _put(self, n: int, state: State) -> None:
        self._at.append(n)
        self._states.append(state)


class Thinned(EveryStep):
    """Keeps evenly spaced states, between ``sqrt(N / 2)`` and ``sqrt(2 N)`` (and one) of N.

    Whenever there are more than twice as many as the stretches between them are long, every other one is dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stride = 1

    def offer(self, n: int, state: State) -> None:
        if n % self._stride:
            return
        self._put(n, state)
        if len(self) > 2 * self._stride:
            del self._at[1::2], self._states[1::2]
            self._stride *= 2


class Binomial(EveryStep):
    """Keeps at most ``slots`` states, so placed that running backward from any step repeats few (online, binomial).

    Every snapshot has a level, and is dispensable as soon as a later one has a higher level. A new state takes the
    place of a dispensable snapshot, or else of the newest one, whose level it takes over, raised by one. The initial
    state stays for good: a backward pass takes all others away, and a second one starts from it alone.

    References
    ----------
    Wang, Moin and Iaccarino (2009), "Minimal repetition dynamic checkpointing algorithm for unsteady adjoint
    calculation".
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots: int = slots
        self._levels: list[float] = []

    def offer(self, n: int, state: State) -> None:
        level = math.inf if n == 0 else 0
        if len(self) == self.slots:
            if self.slots == 1:
                return
            out = self._dispensable()
            if out is None:
                out = len(self) - 1
                level = self._levels[out] + 1
            del self._at[out], self._states[out], self._levels[out]
        self._put(n, state)
        self._levels.append(level)

    def offer_again(self, n: int, state: State, steps: int) -> None:
        # What dense output recomputes after a backward pass, spread out over the places that the pass left free.
        place = bisect.bisect_right(self._at, n)
        neighbours = self._at[max(place - 1, 0) : place + 1]
        if len(self) < self.slots and all(abs(n - other) * self.slots >= steps for other in neighbours):
            self._at.insert(place, n)
            self._states.insert(place, state)
            self._levels.insert(place, 0)

    def take(self, start: int) -> list[tuple[int, State]]:
        taken = super().take(start)
        del self._at[1:], self._states[1:], self._levels[1:]
        return taken

    def _dispensable(self) -> int | None:
        """The latest snapshot that one of a higher level follows."""
        highest = self._levels[-1]
        for place in range(len(self) - 2, 0, -1):
            if self._levels[place] < highest:
                return place
            highest = self._levels[place]
        return None


def advance(length: int, slots: int) -> int:
    """How far to go from the snapshot at the start of a stretch before the next one, to run it backward.

    With ``slots`` snapshots, the one at the start included, this repeats the fewest steps in all, namely
    ``repetitions(length, slots)``.

    Parameters
    ----------
    length : int
        Number of steps of the stretch, at least 2.
    slots : int
        At least 1.

    References
    ----------
    Griewank and Walther (2000), "Algorithm 799: revolve".
    """
    if slots >= length:
        return 1
    times = _times(length, slots)
    return max(_reach(slots, times - 2), length - _reach(slots - 1, times))


def repetitions(length: int, slots: int) -> int:
    """The fewest steps that must be taken again to run a stretch of ``length`` steps backward with ``slots``
    snapshots, the one at its start included; no step is taken more than ``_times(length, slots)`` times."""
    times = _times(length, slots)
    return times * length - _reach(slots + 1, times - 1)


def _times(length: int, slots: int) -> int:
    """How often some step must be repeated."""
    times = 0
    while _reach(slots, times) < length:
        times += 1
    return times


def _reach(slots: int, times: int) -> int:
    """The longest stretch that can be run backward with so many snapshots, no step repeated more than ``times``."""
    return math.comb(slots + times, slots) if times >= 0 else 0
