"""What a run costs: processor time of the whole machine and of the daemons, reads and writes, stolen time.

Ours and the kernel's forwarders spend their time in different places: in a daemon, in the sender's system
call, in an interrupt.  Only the whole machine's busy time counts all of it, so that is what is divided by
octets and frames.  It includes the traffic programs, alike for every forwarder.  The kernel samples who is
busy, once a tick, and a program that wakes up with the ticks is seen always or never; how long a core was
idle it measures.  So busy is what was not idle.

Time stolen by the hypervisor is time somebody else had our core: a run that shows it is not a measurement.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# From the specification
# proc_stat(5), columns of its first line.
IDLE, IOWAIT, STEAL = 3, 4, 7
# proc_pid_stat(5): utime and stime are fields 14 and 15; the fields after the name begin with number 3.
UTIME, STIME = 14 - 3, 15 - 3

# Ours
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
STEAL_MOST = 0.01  # of the time of all cores: what more was stolen shows in the figures


@dataclass(frozen=True, slots=True)
class MachineTime:
    """Seconds since the machine started, summed over its cores."""

    idle_s: float
    stolen_s: float
    cores: int


@dataclass(frozen=True, slots=True)
class ProcessWork:
    """What processes have done since they started, added up.

    Attributes:
        reads: System calls of the read kind, on devices and files; receiving from a socket is none of them.
        writes: The same for writing.
    """

    cpu_s: float = 0.0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used between two looks.

    Attributes:
        cpu_s: Busy time of the whole machine.
        daemons: Of the sending host's forwarder, then of the receiving host's.
        stolen: Share of all cores' time, 0 … 1.
    """

    cpu_s: float
    daemons: tuple[ProcessWork, ...]
    stolen: float
    seconds: float

    @property
    def daemon_cpu_s(self) -> float:
        return sum(work.cpu_s for work in self.daemons)


class Meter:
    """Looks at the machine and at each host's daemons when started, and again when stopped.

    Args:
        hosts: For each host, what tells what its forwarder's processes have done so far.
    """

    def __init__(self, hosts: Sequence[Callable[[], ProcessWork]]) -> None:
        self._hosts = hosts
        self._before: tuple[MachineTime, list[ProcessWork], float] | None = None
        self._usage: Usage | None = None

    def start(self) -> None:
        """Call when everything is ready and nothing is under way."""
        self._before = self._look()

    def stop(self) -> None:
        """Call when what is measured has ended; a stop without a start is a mistake of the scenario's."""
        if self._before is None:
            raise RuntimeError("expected Meter.start() before stop()")
        machine, works, began = self._before
        machine_now, works_now, ended = self._look()
        total = (ended - began) * machine.cores
        idle, stolen = machine_now.idle_s - machine.idle_s, machine_now.stolen_s - machine.stolen_s
        self._usage = Usage(
            cpu_s=max(0.0, total - idle - stolen),
            daemons=tuple(_difference(now, then) for now, then in zip(works_now, works, strict=True)),
            stolen=stolen / total if total else 0.0,
            seconds=ended - began,
        )

    @property
    def usage(self) -> Usage:
        """What the last start and stop enclosed."""
        if self._usage is None:
            raise RuntimeError("expected Meter.start() and stop() before usage")
        return self._usage

    def _look(self) -> tuple[MachineTime, list[ProcessWork], float]:
        return machine_time(), [work() for work in self._hosts], time.monotonic()


def machine_time() -> MachineTime:
    """Of this machine, now."""
    return parse_machine_time(Path("/proc/stat").read_text())


def work_of(pids: Iterable[int]) -> ProcessWork:
    """The sum over processes; one that is gone counts nothing."""
    works = [_work(pid) for pid in pids]
    return ProcessWork(
        sum(work.cpu_s for work in works), sum(w.reads for w in works), sum(w.writes for w in works)
    )


def resident_octets(pid: int) -> int:
    """The process's resident memory; 0 when it is gone."""
    try:
        return parse_resident(Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0


def parse_machine_time(text: str) -> MachineTime:
    """The sum over all cores, from the first line of /proc/stat; those have a line each."""
    first, *others = text.splitlines()
    columns = [int(column) / TICKS_A_SECOND for column in first.split()[1:]]
    cores = sum(line.startswith("cpu") for line in others)
    return MachineTime(columns[IDLE] + columns[IOWAIT], columns[STEAL], cores)


def parse_process_cpu(text: str) -> float:
    """User and system seconds of /proc/<pid>/stat, all threads; the name in it may contain anything."""
    fields = text.rpartition(")")[2].split()
    return (int(fields[UTIME]) + int(fields[STIME])) / TICKS_A_SECOND


def parse_process_calls(text: str) -> tuple[int, int]:
    """Reads and writes of /proc/<pid>/io."""
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    return int(values["syscr"]), int(values["syscw"])


def parse_resident(text: str) -> int:
    """VmRSS of /proc/<pid>/status, in octets."""
    for line in text.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _work(pid: int) -> ProcessWork:
    try:
        cpu_s = parse_process_cpu(Path(f"/proc/{pid}/stat").read_text())
        reads, writes = parse_process_calls(Path(f"/proc/{pid}/io").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return ProcessWork()
    return ProcessWork(cpu_s, reads, writes)


def _difference(now: ProcessWork, then: ProcessWork) -> ProcessWork:
    return ProcessWork(now.cpu_s - then.cpu_s, now.reads - then.reads, now.writes - then.writes)
