"""A callback that holds the loop shows in its lag, and is forgotten after a minute."""

from __future__ import annotations

import asyncio
import time

from control import loop_lag
from control.loop_lag import LagWatch, LoopLag

HELD = 0.4


def watched(*, holds: bool) -> LoopLag:
    async def live() -> LoopLag:
        watch = LagWatch()
        task = asyncio.create_task(watch.run())
        while len(watch._late) < 5:
            await asyncio.sleep(loop_lag.LOOK_SECONDS / 2)
            if holds and not watch._late:
                time.sleep(HELD)  # noqa: ASYNC251 - what is to be seen
        task.cancel()
        return watch.lag()

    return asyncio.run(live())


def test_what_holds_the_loop_is_seen_and_a_quiet_one_is_not_late() -> None:
    held, quiet = watched(holds=True), watched(holds=False)
    assert held.worst >= HELD / 2
    assert held.worst == held.p99
    assert quiet.p50 < HELD / 2


def test_before_the_first_look_there_is_no_lag() -> None:
    assert LagWatch().lag() == LoopLag()


def test_one_look_in_a_hundred_may_be_late_before_p99_is() -> None:
    watch = LagWatch()
    watch._late.extend([0.0] * 197 + [1.0])
    assert watch.lag() == LoopLag(0.0, 0.0, 1.0)
    watch._late.extend([1.0] * 2)
    assert watch.lag() == LoopLag(0.0, 1.0, 1.0)
    watch._late.extend([0.0] * loop_lag.LOOKS_KEPT)
    assert watch.lag() == LoopLag()
