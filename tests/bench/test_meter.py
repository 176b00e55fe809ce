"""What the kernel writes of processors and processes is read by the right columns."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from bench import meter as meter_module
from bench.meter import (
    TICKS_A_SECOND,
    MachineTime,
    Meter,
    machine_time,
    parse_machine_time,
    parse_process_calls,
    parse_process_cpu,
    parse_resident,
    resident_octets,
    work_of,
)

NO_SUCH_PROCESS = 2**22 + 1  # above the largest process id there can be


def test_idle_time_is_waiting_too_and_not_what_was_stolen() -> None:
    #                     user nice system idle iowait irq softirq steal guest guest_nice
    lines = ["cpu  100 20 300 4000 500 6 70 80 90 9", "cpu0 1 2 3", "cpu1 1 2 3", "intr 5"]
    found = parse_machine_time("\n".join(lines))
    assert found.idle_s == pytest.approx((4000 + 500) / TICKS_A_SECOND)
    assert found.stolen_s == pytest.approx(80 / TICKS_A_SECOND)
    assert found.cores == 2


def test_what_was_neither_idle_nor_stolen_was_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([MachineTime(10.0, 1.0, 2), MachineTime(12.5, 1.25, 2)])
    monkeypatch.setattr(meter_module, "machine_time", lambda: next(times))
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    meter = Meter([])
    meter.start()
    meter.stop()
    assert [meter.usage.cpu_s, meter.usage.stolen] == pytest.approx([1.25, 0.0625])


def test_a_process_may_be_called_anything() -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    text = f"7 (a) b) R (c) S {fields}"
    assert parse_process_cpu(text) == pytest.approx((14 + 15) / TICKS_A_SECOND)


def test_calls_are_counted_and_not_octets() -> None:
    assert parse_process_calls("rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\n") == (3, 4)


def test_resident_memory_is_in_octets() -> None:
    assert parse_resident("Name:\tx\nVmHWM:\t9 kB\nVmRSS:\t    2048 kB\n") == 2048 * 1024
    assert parse_resident("Name:\tkthread\n") == 0


def test_the_meter_sees_this_process_work() -> None:
    meter = Meter([partial(work_of, [os.getpid()]), partial(work_of, [])])
    meter.start()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    Path("/proc/self/stat").read_text()
    meter.stop()
    ours, nobody = meter.usage.daemons
    assert ours.cpu_s >= 0.08
    assert ours.reads > 0
    assert (nobody.cpu_s, nobody.reads, nobody.writes) == (0, 0, 0)
    assert meter.usage.daemon_cpu_s == ours.cpu_s
    assert meter.usage.cpu_s >= 0.08
    assert 0 <= meter.usage.stolen <= 1


def test_a_process_that_is_gone_counts_nothing() -> None:
    assert work_of([NO_SUCH_PROCESS]).cpu_s == 0
    assert resident_octets(NO_SUCH_PROCESS) == 0
    assert resident_octets(os.getpid()) > 1_000_000


def test_a_meter_that_was_not_started_says_so() -> None:
    with pytest.raises(RuntimeError, match="start"):
        Meter([]).stop()
    with pytest.raises(RuntimeError, match="start"):
        _ = Meter([]).usage


def test_the_machine_has_been_busy() -> None:
    now = machine_time()
    assert 0 < now.idle_s < time.clock_gettime(time.CLOCK_BOOTTIME) * now.cores
    assert now.cores == os.cpu_count()
