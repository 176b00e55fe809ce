"""What is said of a machine is what it says of itself."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest
from support.bench import a_machine

from bench.machine import DEAR_WAKE_UP_US, describe_machine, parse_cpu_model


def test_the_processors_name_is_read() -> None:
    text = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: Paper 9000: fast\n\nmodel name\t: other\n"
    assert parse_cpu_model(text) == "Paper 9000: fast"
    assert parse_cpu_model("processor\t: 0\nBogoMIPS\t: 50.0\n") == platform.machine()


@pytest.mark.parametrize(
    ("wake_us", "dear"), [(None, False), (DEAR_WAKE_UP_US, False), (DEAR_WAKE_UP_US + 0.1, True)]
)
def test_waking_is_dear_above_the_limit(wake_us: float | None, dear: bool) -> None:
    assert replace(a_machine(), wake_us=wake_us).wakes_dearly is dear


def test_this_machine_is_described() -> None:
    found = describe_machine()
    assert found.kernel == platform.release()
    assert found.cores >= 1
    assert (found.wake_us is None) == (found.cores == 1)
    assert found.wake_same_core_us is not None
    assert found.wake_same_core_us > 0
    assert found.native.startswith(("built", "not built: "))
    assert found.congestion_control in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text()
