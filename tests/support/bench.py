"""Records of benches that never took place, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

from bench.machine import Machine
from bench.record import Entry, Record, Run

VETH = "veth"


def a_machine() -> Machine:
    """Two cores that wake each other cheaply."""
    return Machine(
        kernel="6.18.0",
        cpu="Paper 9000",
        cores=2,
        python="CPython 3.11.7",
        revision="0123456789ab",
        native="built",
        wake_us=4.0,
        wake_same_core_us=2.0,
        load=0.1,
        versions={"iperf3": "iperf 3.12"},
    )


def a_record() -> Record:
    """Nothing measured yet; the forwarders are there."""
    names = {"bare": "no overlay", "kernel": "kernel VXLAN", "weft:python": "weft, python"}
    return Record(
        started_at="2026-01-02T03:04:05Z",
        suite="quick",
        pairs=3,
        seconds=2.0,
        machine=a_machine(),
        ended_at="2026-01-02T03:14:05Z",
        partial=False,
        entries=[Entry(VETH, 2, name, title) for name, title in names.items()],
    )


def runs_of(scenario: str, forwarder: str, **measures: Sequence[float]) -> list[Run]:
    """A run for each round, with the figures of that round."""
    rounds = zip(*measures.values(), strict=True)
    return [
        Run(VETH, scenario, forwarder, number, dict(zip(measures, figures, strict=True)))
        for number, figures in enumerate(rounds)
    ]
