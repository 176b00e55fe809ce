"""How fast the cores run just now, which a neighbour on the same silicon can halve without stealing any time.

A hypervisor may give one hardware thread of a core to us and the other to somebody else.  While that one
works, our instructions take longer, and /proc/stat knows nothing of it: no time is stolen.  A difference in
microseconds means little then.  A piece of work that is always the same shows it: what counts is how much
longer a core takes for it than it took at its best.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

# Ours
PIECE = 30_000  # turns of a loop: a millisecond
PIECES = 5  # the median of so many: what interrupts one of them does not count
LEARN_S = 2.0  # in this time even a core with a busy neighbour has a millisecond to itself
LOOK_EVERY_S = 0.1
CORES_MAX = 8  # looked at: of more, as many evenly spread, or a look would last longer than what it is for


def time_piece_of_work() -> float:
    """Seconds of processor time of this thread: who else was on the core meanwhile does not count."""
    began = time.thread_time()
    total = 0
    for number in range(PIECE):
        total += number & 3
    return time.thread_time() - began


class Pace:
    """Compares the cores this process may use with their own best so far.

    Args:
        time_piece: Processor seconds the calling thread takes for the piece of work.
        sleep: Waits so many seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        time_piece: Callable[[], float] = time_piece_of_work,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._time_piece = time_piece
        self._sleep = sleep
        self._clock = clock
        self._best: dict[int, float] = {}

    def learn(self) -> None:
        """Looks at the cores for `LEARN_S`, so that their best is known before it is asked for."""
        until = self._clock() + LEARN_S
        while self._clock() < until:
            self.slowed()
            self._sleep(LOOK_EVERY_S)

    def slowed(self) -> float:
        """How much longer the slowest core takes than at its best so far: 0.0 not at all, 1.0 twice as long.

        A neighbour who is there all the while does not show: then the best so far is what he left.
        """
        ours = os.sched_getaffinity(0)
        try:
            return max(self._slowed_on(core) for core in sorted(ours)[:: -(-len(ours) // CORES_MAX)])
        finally:
            os.sched_setaffinity(0, ours)

    def wait(self, most: float, within_s: float) -> float:
        """What `slowed` says as soon as that is `most` or less; after so many seconds whatever it says."""
        until = self._clock() + within_s
        while (slowed := self.slowed()) > most and self._clock() < until:
            self._sleep(LOOK_EVERY_S)
        return slowed

    def _slowed_on(self, core: int) -> float:
        os.sched_setaffinity(0, {core})
        times = [self._time_piece() for _ in range(PIECES)]
        best = self._best[core] = min(*times, self._best.get(core, times[0]))
        return median(times) / best - 1
