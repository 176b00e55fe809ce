"""The two engines and the choice between them: explicit, with its reason, never an exception swallowed.

    native   Rust, threads of its own       `tunnel.nativedatapath`, where it was built
    python   the specification              `tunnel.pydatapath`, everywhere

`auto` is the native one wherever it was built and loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from overlay.addr import IpAddress
from overlay.errors import DatapathUnavailableError
from overlay.tables import Tables
from tunnel import sums
from tunnel.interfaces import Datapath, Reactor
from tunnel.poller import Poller
from tunnel.pydatapath import PythonDatapath
from tunnel.underlay import UdpUnderlay

NATIVE, PYTHON, AUTO = "native", "python", "auto"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine carries, why that one, with how many workers, and the core of each if it has one."""

    kind: str
    reason: str
    workers: int = 1
    cores: tuple[int, ...] = ()


def choose(wanted: str, *, obstacle: str | None) -> Choice:
    """The engine for what the operator wants, `auto`, `native` or `python`.

    Args:
        wanted: What the configuration says.
        obstacle: Why the native engine is not to be had, None if it is.

    Raises:
        DatapathUnavailableError: The native engine is wanted and cannot be had.
    """
    if wanted == PYTHON:
        return Choice(PYTHON, "the configuration asks for it")
    if obstacle is None:
        reason = "the configuration asks for it" if wanted == NATIVE else "it was built, and is the faster"
        return Choice(NATIVE, reason)
    if wanted == NATIVE:
        raise DatapathUnavailableError(NATIVE, obstacle)
    return Choice(PYTHON, f"no native engine: {obstacle}")


def open_datapath(
    choice: Choice,
    tables: Tables,
    underlays: Sequence[UdpUnderlay],
    *,
    reactor: Reactor,
    choose_underlay: Callable[[IpAddress], UdpUnderlay | None],
    on_failure: Callable[[DatapathUnavailableError], object],
) -> Datapath:
    """The engine that was chosen, carrying nothing yet.  `on_failure` is told if it breaks."""
    if choice.kind == NATIVE:
        # Not above: where it was not built there is nothing to import.
        from tunnel.nativedatapath import NativeDatapath, open_lanes  # noqa: PLC0415

        lanes = open_lanes(choice.workers)
        datapath = NativeDatapath(
            tables,
            underlays,
            reactor=reactor,
            choose_underlay=choose_underlay,
            on_failure=on_failure,
            lanes=lanes,
        )
        try:
            lanes.start(choice.cores)
        except OSError as error:
            datapath.close()
            pinned = f" and pinned to cores {', '.join(map(str, choice.cores))}" if choice.cores else ""
            why = f"its {choice.workers} threads could not be started{pinned}: {error.strerror}"
            raise DatapathUnavailableError(NATIVE, why) from error
        return datapath
    sums.load()  # before frames come, not with the first that is cut
    return PythonDatapath(
        tables,
        underlays,
        reactor=Poller(reactor, monotonic),
        clock=monotonic,
        choose_underlay=choose_underlay,
    )
