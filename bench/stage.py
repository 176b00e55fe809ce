"""Where forwarders are compared: nodes on a direct underlay, and every overlay beside the others on them.

    n1 ── veth ── n2             10.20.0.1   bare: the underlay itself
      overlay 1: 10.20.1.1 … 10.20.1.2
      overlay 2: 10.20.2.1 … 10.20.2.2   …

All overlays are up at once, each with a subnet, a VNI, a port and devices of its own.  So two runs of a pair
differ in one address only: nothing is built, started or learnt between them.  The price is that the daemons
of the others are there and idle; what that costs is measured and put on record.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.lab import checks
from bench.lab.commands import LabError, end_process, ends_with_us, wait_until, weft_environment
from bench.lab.namespaces import Lab, Place
from bench.lab.topology import (
    UNDERLAY_DEVICE,
    UNDERLAY_MTU,
    VXLAN_OVERHEAD,
    Address,
    NodeKind,
    Topology,
    Underlay,
    UnderlayKind,
    segment,
)
from bench.meter import ProcessWork

# Ours
REACHABLE_WITHIN_S = 15.0
WORDS_KEPT = 400  # of a daemon that failed: the end of what it said
FIRST_VNI = 100
FIRST_PORT = 14789  # not 4789: every overlay of the stage needs a port of its own


class Stage(ABC):
    """Nodes n1, n2, … with an underlay and nothing on it yet, while the `with` block lasts.

    Attributes:
        topology: On paper: who has which underlay address, and its MTU.
        directory: For the files of overlays; every node reads them there.
        overlays: Those that were started on it.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.directory = Path()
        self.overlays: list[Overlay] = []

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def place(self, index: int) -> Place:
        """Where the node's commands run."""

    @property
    def size(self) -> int:
        return len(self.topology.nodes)

    @property
    def mtu(self) -> int:
        """Of the underlay."""
        return self.topology.underlay.mtu

    def vtep(self, index: int) -> Address:
        """The node's underlay address."""
        return self.topology.nodes[index].vtep

    def others(self, index: int) -> list[int]:
        return [other for other in range(self.size) if other != index]

    def offloads(self) -> dict[str, str]:
        """The first node's underlay device's features, as ethtool prints them: on, off, off [fixed]."""
        said = self.place(0).run(["ethtool", "-k", UNDERLAY_DEVICE]).stdout
        return dict(line.strip().split(": ", 1) for line in said.splitlines() if ": " in line)


class LabStage(Stage):
    """A stage in network namespaces, built for the purpose and gone afterwards.

    Raises:
        LabError: It could not be built.
    """

    def __init__(self, kind: UnderlayKind, *, nodes: int = 2, mtu: int = UNDERLAY_MTU) -> None:
        self.kind = kind
        super().__init__(segment("bench", *[NodeKind.BARE] * nodes, underlay=Underlay(kind, mtu)))
        self._lab = Lab(self.topology)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self._lab)
        # Named like the lab's own: whoever sweeps dead labs away takes this along.
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self._lab.prefix}-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def place(self, index: int) -> Place:
        return self._lab[self.topology.nodes[index].name]


@dataclass(frozen=True, slots=True)
class Ground:
    """A sort of underlay that stages of any size are built on.

    Attributes:
        name: As in the record: `veth`, `wire-like, MTU 9000`, `compose`.
        build: A stage of so many nodes, not yet entered.
        most_nodes: There are no more; None: as many as are asked for.
    """

    name: str
    build: Callable[[int], Stage]
    most_nodes: int | None = None


def lab_ground(kind: UnderlayKind, mtu: int = UNDERLAY_MTU) -> Ground:
    """Namespaces of this machine."""
    name = kind.value if mtu == UNDERLAY_MTU else f"{kind.value}, MTU {mtu}"
    return Ground(name, lambda nodes: LabStage(kind, nodes=nodes, mtu=mtu))


class Service:
    """A daemon in a place of the stage, with all it says in a file."""

    def __init__(self, place: Place, argv: Sequence[str], log: Path) -> None:
        self._name = f"{Path(argv[0]).name} in {place.name}"
        self._log = log
        with log.open("w") as output:
            self._process: subprocess.Popen[str] = place.popen(
                [*ends_with_us(), *argv], stdout=output, env=weft_environment()
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ensure_running(self) -> None:
        """Raises LabError, with its last words, if it has ended."""
        if self._process.poll() is not None:
            words = self.last_words()
            raise LabError(f"{self._name} exited with {self._process.returncode}: {words}")

    def last_words(self) -> str:
        return self._log.read_text(errors="replace").strip()[-WORDS_KEPT:]

    def stop(self) -> None:
        end_process(self._process)


class Overlay(ABC):
    """One forwarder's overlay on a stage.

    Args:
        number: Its own on this stage: chooses subnet, VNI, port and device names.
    """

    device_prefix = "ov"
    most_nodes: int | None = None
    """More than these it cannot join, or there is nothing to learn from it."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage = stage
        self.number = number
        self.services: dict[int, list[Service]] = {}

    @abstractmethod
    def start_node(self, index: int) -> None:
        """Makes node `index` a member.  It need not be ready at return."""

    @abstractmethod
    def stop_node(self, index: int) -> None:
        """The reverse."""

    def facts(self) -> Mapping[str, Any]:
        """What is worth putting on record beside the figures."""
        return {}

    @property
    def mtu(self) -> int:
        """The same for every overlay, so that all carry equally many octets in a frame."""
        return self.stage.mtu - VXLAN_OVERHEAD[4]

    @property
    def vni(self) -> int:
        return FIRST_VNI + self.number

    @property
    def port(self) -> int:
        return FIRST_PORT + self.number

    @property
    def device(self) -> str:
        return f"{self.device_prefix}{self.number}"

    def address(self, index: int) -> Address:
        return IPv4Address(f"10.20.{self.number}.{index + 1}")

    def pids(self, index: int) -> list[int]:
        return [service.pid for service in self.services.get(index, ())]

    def work(self, index: int) -> ProcessWork:
        """What the node's daemons have done so far."""
        return self.stage.place(index).work_of(self.pids(index))

    def resident_octets(self, index: int) -> int:
        """The memory of the node's daemons."""
        return self.stage.place(index).resident_octets(self.pids(index))

    def start(self) -> None:
        """Starts every node, returns when the first reaches each of the others.

        Raises:
            LabError: A command failed, a daemon ended, or nothing was reached in time.
        """
        self.stage.overlays.append(self)
        for index in range(self.stage.size):
            self.start_node(index)
        self.await_reachable()

    def stop_quietly(self) -> None:
        """Takes away what there is of it, as far as it goes: after a start that failed, or at the end."""
        for index in range(self.stage.size):
            with suppress(LabError):
                self.stop_node(index)

    def await_reachable(self) -> None:
        """Returns when the first node reaches each of the others.

        Raises:
            LabError: It does not in time, or a daemon has ended; with its words.
        """
        deadline = time.monotonic() + REACHABLE_WITHIN_S
        for index in self.stage.others(0):
            claim = f"{self.device}: {self.stage.place(0).name} reaches {self.address(index)}"
            reaches = partial(self._reaches, index)
            wait_until(reaches, claim, deadline=deadline, context=self._words)

    def ensure_running(self) -> None:
        """Raises LabError, with its last words, if one of the daemons has ended."""
        for services in self.services.values():
            for service in services:
                service.ensure_running()

    def _reaches(self, index: int) -> bool:
        self.ensure_running()
        try:
            return checks.ping(self.stage.place(0), self.address(index), count=1).complete
        except LabError:  # no such network yet
            return False

    def _await_file(self, index: int, name: str) -> None:
        path = self.home(index) / name
        deadline = time.monotonic() + REACHABLE_WITHIN_S

        def is_there() -> bool:
            self.ensure_running()
            return path.exists()

        wait_until(is_there, f"{path} is there", deadline=deadline, context=self._words)

    def _words(self) -> str:
        return "\n".join(service.last_words() for services in self.services.values() for service in services)

    def _run(self, index: int, *argv: str) -> str:
        return self.stage.place(index).run(argv).stdout

    def _start_service(self, index: int, argv: Sequence[str], name: str) -> Service:
        service = Service(self.stage.place(index), argv, self.home(index) / f"{name}.log")
        self.services.setdefault(index, []).append(service)
        return service

    def _stop_services(self, index: int) -> None:
        for service in reversed(self.services.pop(index, [])):
            service.stop()

    def home(self, index: int) -> Path:
        """A directory for the node's files of this overlay."""
        path = self.stage.directory / f"{self.device}-{index + 1}"
        path.mkdir(exist_ok=True)
        return path
