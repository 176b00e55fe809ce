"""Time that passes only when nothing is left to do: a `Reactor` for whole nodes in one process.

Each turn is a turn of an event loop: readers that are ready, timers that are due, callbacks of `call_soon`.
When a turn finds nothing to run, the clock jumps to the next timer; an hour costs as much as what happens
in it.  Two runs from one seed are the same run.

Readers are level-triggered, as under epoll: one that leaves something unread is called again.  Which of
several ready readers comes first is nobody's promise, so the seed decides it and code that relies on an
order is found out.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from random import Random

# Ours
FIRST_DESCRIPTOR = 1 << 20  # beyond any real one, so that a mistaken system call fails
TURNS_PER_INSTANT_MAX = 100_000

Callback = Callable[..., object]


class Scheduled:
    """A callback that will run unless it is cancelled."""

    __slots__ = ("args", "callback", "is_cancelled")

    def __init__(self, callback: Callback, args: tuple[object, ...]) -> None:
        self.callback = callback
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def run(self) -> None:
        """Runs it, or not if it was cancelled."""
        if not self.is_cancelled:
            self.callback(*self.args)


class VirtualReactor:
    """What a datapath uses of an event loop, in virtual seconds.  An exception in a callback ends the run."""

    def __init__(self, seed: int = 0) -> None:
        self._now = 0.0
        self._random = Random(seed)
        self._soon: deque[Scheduled] = deque()
        self._timers: list[tuple[float, int, Scheduled]] = []
        self._sequence = itertools.count()  # timers of one instant run in the order they were set
        self._readable: dict[int, Callable[[], bool]] = {}
        self._readers: dict[int, Scheduled] = {}
        self._descriptors = itertools.count(FIRST_DESCRIPTOR)
        self._turns_here = 0  # at this instant of virtual time

    # What a datapath sees: `tunnel.interfaces.Reactor`.

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callback, /, *args: object) -> Scheduled:
        scheduled = Scheduled(callback, args)
        self._soon.append(scheduled)
        return scheduled

    def call_later(self, delay: float, callback: Callback, /, *args: object) -> Scheduled:
        scheduled = Scheduled(callback, args)
        heapq.heappush(self._timers, (self._now + max(0.0, delay), next(self._sequence), scheduled))
        return scheduled

    def add_reader(self, fd: int, callback: Callback, /, *args: object) -> None:
        self._readers[fd] = Scheduled(callback, args)

    def remove_reader(self, fd: int, /) -> bool:
        return self._readers.pop(fd, None) is not None

    # What simulated devices see.

    def open_descriptor(self, is_readable: Callable[[], bool]) -> int:
        """A number for `add_reader`, ready whenever the claim holds."""
        fd = next(self._descriptors)
        self._readable[fd] = is_readable
        return fd

    def close_descriptor(self, fd: int) -> None:
        """The number means nothing from now on; its reader, if any, is never called again."""
        self._readable.pop(fd, None)
        self._readers.pop(fd, None)

    # What a test sees.

    def run_until(self, condition: Callable[[], bool], *, within: float) -> bool:
        """Lets time pass until the condition holds; whether it did within so many virtual seconds."""
        deadline = self._now + within
        while not condition():
            if not self._turn(deadline):
                return condition()
        return True

    def run_for(self, seconds: float) -> None:
        """Lets so many virtual seconds pass."""
        self.run_until(lambda: False, within=seconds)

    def _turn(self, deadline: float) -> bool:
        """One turn, after a jump of the clock if nothing is ready; False once the deadline is reached."""
        if not self._collect():
            following = self._next_timer_at()
            if following is None or following > deadline:
                self._now = deadline
                return False
            if following > self._now:
                self._now = following
                self._turns_here = 0
            self._collect()
        self._turns_here += 1
        if self._turns_here > TURNS_PER_INSTANT_MAX:
            raise RuntimeError(
                f"spinning at {self._now} s: {self._soon[0].callback!r} is ready again and again"
            )
        # What these schedule by call_soon belongs to the next turn, as in asyncio.
        for _ in range(len(self._soon)):
            self._soon.popleft().run()
        return True

    def _collect(self) -> bool:
        """Moves what is due to the queue of this turn; whether there is anything in it."""
        ready = [fd for fd in sorted(self._readers) if self._readable[fd]()]
        self._random.shuffle(ready)
        self._soon.extend(self._readers[fd] for fd in ready)
        while self._timers and self._timers[0][0] <= self._now:
            self._soon.append(heapq.heappop(self._timers)[2])
        return bool(self._soon)

    def _next_timer_at(self) -> float | None:
        while self._timers and self._timers[0][2].is_cancelled:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None
