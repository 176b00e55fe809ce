"""A reactor for data: an engine's descriptors are looked at together, and for a moment more before sleep.

    event loop ──▶ one epoll descriptor ──▶ turn ──▶ drain, drain … until nothing is there or a turn is over
                                              └────▶ look again, give the core away, look again … then sleep

An event loop is made for thousands of quiet connections; for a handful of busy descriptors most of a turn is
its own bookkeeping.  So the loop watches one descriptor, which stands for all of ours (epoll(7): an epoll
descriptor is readable while one of its own is), and is called once for up to TURN_SECONDS of work.

**Spinning.**  Waking a process on another core costs a few microseconds on one machine and sixty on the
next, and what wakes runs on cold caches.  So when nothing is there a turn goes on looking for SPIN_SECONDS,
giving the core away each time (`sched_yield`: whoever is to answer may need it), but only while the recent
past says that it pays: work that came within the time a spin covers speaks for it, later work against.
Where work fills half of the time nothing spins either: then whoever makes that work has better use for the
core.  (One TCP stream over veth, 2 cores, in turn with spinning all the while: 7.1 -> 7.8 Gb/s.)

The price is the core: while requests come some 800 a second or faster, a waiting daemon looks instead of
sleeping, and shows as busy though it yields to whoever wants the core.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from functools import partial

from tunnel.interfaces import Cancellable, Reactor

# Ours
READY_MAX = 32  # descriptors told of at once: room for them is taken for every look
TURN_SECONDS = 0.001  # then gossip, timers and the API have the loop
SPIN_SECONDS = 0.0012  # covers request and response at 1000 a second
SCORE_MAX = 16
SCORE_HIT = 4  # a soon answer speaks louder than a late one: request and response alternate the two
BUSY_SHARE = 0.5  # of the time, from which nothing spins
BUSY_SECONDS = 0.02  # over which that share is taken, older times counting less and less


class Poller:
    """A `Reactor` on top of another, which lends it the time and its timers.

    What it holds of the other is given back with the last reader.

    Args:
        reactor: The event loop.
        clock: Monotonic seconds.  (A loop's own time may stand still during a callback.)
    """

    def __init__(self, reactor: Reactor, clock: Callable[[], float]) -> None:
        self._reactor = reactor
        self._clock = clock
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], object]] = {}
        self._ready: list[tuple[int, int]] = []
        self._score = 0
        self._worked_at = 0.0
        self._busy = 0.0  # share of the last time that was work, 0 … 1
        self._is_waiting = False

    # ── A reactor ───────────────────────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        return self._reactor.time()

    def call_soon(self, callback: Callable[..., object], /, *args: object) -> Cancellable:
        return self._reactor.call_soon(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: object) -> Cancellable:
        return self._reactor.call_later(delay, callback, *args)

    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: object) -> None:
        """Has the callback called whenever the descriptor is readable or in error."""
        with contextlib.suppress(FileExistsError):  # one closed unseen took its registration with it
            self._epoll.register(fd, select.EPOLLIN)
        if not self._readers:
            self._reactor.add_reader(self._epoll.fileno(), self._turn)
        self._readers[fd] = partial(callback, *args)

    def remove_reader(self, fd: int, /) -> bool:
        """Calls it no more.  Idempotent; the descriptor may be closed already."""
        if self._readers.pop(fd, None) is None:
            return False
        with contextlib.suppress(OSError):  # closed, with which the kernel took it out
            self._epoll.unregister(fd)
        if not self._readers:
            self._reactor.remove_reader(self._epoll.fileno())
        return True

    # ── Turns ───────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        """HOT PATH: works, and looks again, until nothing is there, the time is over, or spinning is.

        What epoll tells of at once is served in any order, all of it before it is asked again, in the next
        turn if the time is over: a busy descriptor keeps no other from its turn.
        """
        clock, poll, readers = self._clock, self._epoll.poll, self._readers
        now = clock()
        deadline = now + TURN_SECONDS
        while now < deadline:
            if not self._ready:
                self._ready = poll(0, READY_MAX)
                if not self._ready:
                    if not self._spins(now):
                        return
                    os.sched_yield()
                    now = clock()
                    continue
            fd, _ = self._ready.pop()
            reader = readers.get(fd)
            if reader is not None:
                reader()
            found_at, now = now, clock()
            self._note(found_at, now)
        self._come_back()

    def _spins(self, now: float) -> bool:
        """Whether to look again at once, nothing being there, and not to sleep."""
        return self._score > 0 and self._busy <= BUSY_SHARE and now - self._worked_at < SPIN_SECONDS

    def _note(self, found_at: float, done_at: float) -> None:
        """Work has come, soon or late, and is done."""
        idle, work, lasted = found_at - self._worked_at, done_at - found_at, done_at - self._worked_at
        self._worked_at = done_at
        if idle <= SPIN_SECONDS:
            self._score = min(SCORE_MAX, self._score + SCORE_HIT)
        elif self._score:
            self._score -= 1
        if lasted < BUSY_SECONDS:
            self._busy += (work - self._busy * lasted) / BUSY_SECONDS
        else:
            self._busy = work / lasted

    def _come_back(self) -> None:
        """Has the next turn as soon as the loop has had its own."""
        if not self._is_waiting:
            self._is_waiting = True
            self._reactor.call_soon(self._return)

    def _return(self) -> None:
        self._is_waiting = False
        if self._readers:
            self._turn()
