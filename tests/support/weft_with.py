"""The `weft` command with an audit, and with a constant changed: what a test of a real daemon may need.

    python tests/support/weft_with.py [tunnel.offload.GUESS_MTU=1450 …] [engine=native] [breaks=2] -- run …

`breaks=2`: the native engine's worker panics on its own when it expires flows for the second time.

The audit: when the engine closes, its ledger must balance, before it lets go of what it holds and after.
If it does not, the process says so and exits with UNBALANCED, whatever the daemon wanted to exit with.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

from control.operator.build import native_obstacle
from control.operator.cli.main import weft
from tunnel.interfaces import Datapath
from tunnel.pydatapath import PythonDatapath

UNBALANCED = 99

_audited: list[bool] = []


def audited(close: Callable[[Any], None]) -> Callable[[Any], None]:
    """An engine's `close` between two looks at the ledger."""

    def close_audited(engine: Datapath) -> None:
        _audit(engine, "before closing")
        close(engine)
        _audit(engine, "after closing")

    return close_audited


def engines() -> list[Any]:
    """The classes of all engines of this build."""
    found: list[Any] = [PythonDatapath]
    if native_obstacle() is None:
        found.append(importlib.import_module("tunnel.nativedatapath").NativeDatapath)
    return found


def _audit(engine: Datapath, when: str) -> None:
    ledger = engine.statistics().ledger
    _audited.append(ledger.balances)
    if not ledger.balances:
        sys.stderr.write(f"{when}: {ledger}\n")


def change(assignment: str) -> None:
    """Sets a constant (`module.NAME=5`) to a whole number."""
    place, _, value = assignment.partition("=")
    if place == "engine":
        os.environ["WEFT_ENGINE"] = value
        return
    if place == "breaks":
        break_native(int(value))
        return
    module, _, name = place.rpartition(".")
    found = importlib.import_module(module)
    getattr(found, name)  # a constant that is not there must not be invented
    setattr(found, name, int(value))


def break_native(times: int) -> None:
    """Has the worker of the native engine panic at that call of `expire`, some seconds after it is ready."""
    native = importlib.import_module("tunnel.nativedatapath").NativeDatapath
    expire, calls = native.expire, count(1)

    def expire_and_break(engine: Any, *, now: float) -> None:
        expire(engine, now=now)
        if next(calls) == times:
            engine._lanes.break_on_purpose()

    native.expire = expire_and_break


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    for assignment in arguments[:split]:
        change(assignment)
    for engine in engines():
        engine.close = audited(engine.close)
    code = weft.main(arguments[split + 1 :], standalone_mode=False)
    sys.exit(code if all(_audited) else UNBALANCED)


if __name__ == "__main__":
    main(sys.argv[1:])
