"""The stage that docker-compose has built: this container, and others of the same machine beside it.

    bench (in node1's network)          far2 (in node2's)           far3 (in node3's)
      eth0 198.19.250.11 ──── the underlay network ──── 198.19.250.12, …
      weft0 10.9.0.1 …    the nodes' own overlay, as they run it

A station shares the network of a node that runs `weft run` and nothing else, so what is measured is the node
itself and, beside it on the same underlay, every other forwarder.  Read `serve` for how commands get there.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.lab.commands import POLL_S, LabError, run_command, sigterm_as_exit, undisturbed
from bench.lab.namespaces import Place
from bench.lab.topology import UNDERLAY_DEVICE, Node, NodeKind, Topology, Underlay
from bench.meter import ProcessWork
from bench.stage import Ground, Stage
from bench.station import inside

# Ours
COMPOSE = "compose"
NEAR = "n1"
ASK_WITHIN_S = 5.0
SERVES_WITHIN_S = 10.0


class NearPlace(Place):
    """This container."""

    def __init__(self) -> None:
        super().__init__(NEAR, "", None)

    def _inside(self, argv: Sequence[str]) -> list[str]:
        return list(argv)


class FarPlace(Place):
    """Another container, where a station serves."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, "", None)
        self._path = path

    def work_of(self, pids: Iterable[int]) -> ProcessWork:
        found = self._ask(pids)
        return ProcessWork(found["cpu_s"], found["reads"], found["writes"])

    def resident_octets(self, pids: Iterable[int]) -> int:
        return int(self._ask(pids)["resident"])

    def _ask(self, pids: Iterable[int]) -> dict[str, Any]:
        """The processes are known there by the ids of those that asked for them."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as station:
            station.settimeout(ASK_WITHIN_S)
            try:
                station.connect(str(self._path))
                station.send(json.dumps({"work": list(pids)}).encode())
                found: dict[str, Any] = json.loads(station.recv(inside.LONGEST))
            except (OSError, json.JSONDecodeError) as error:
                raise LabError(f"the station at {self._path} does not answer: {error}") from error
        return found

    def _inside(self, argv: Sequence[str]) -> list[str]:
        # -I and -S: nothing of the environment is looked at, nothing but the standard library searched.
        return [sys.executable, "-I", "-S", inside.__file__, str(self._path), *argv]


class ComposeStage(Stage):
    """This container and those behind the sockets, while the `with` block lasts.

    Raises:
        LabError: A station does not answer, or an underlay address is missing.
    """

    def __init__(self, stations: Sequence[Path]) -> None:
        self._places: list[Place] = [NearPlace()]
        self._places += [FarPlace(f"n{number}", path) for number, path in enumerate(stations, start=2)]
        self._shared = stations[0].parent
        self._open = ExitStack()
        super().__init__(self._topology())

    def __enter__(self) -> Self:
        self._open.enter_context(sigterm_as_exit())
        self.directory = Path(tempfile.mkdtemp(prefix="bench-", dir=self._shared))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():
            for overlay in reversed(self.overlays):
                overlay.stop_quietly()
            for place in self._places:
                place.end_processes()
            shutil.rmtree(self.directory, ignore_errors=True)
        self._open.close()

    def place(self, index: int) -> Place:
        return self._places[index]

    def _topology(self) -> Topology:
        said = [place.run(["ip", "-j", "address", "show", "dev", UNDERLAY_DEVICE]) for place in self._places]
        found = [parse_underlay(text.stdout) for text in said]
        nodes = tuple(
            Node(place.name, NodeKind.BARE, (ip_interface(address),))
            for place, (address, _) in zip(self._places, found, strict=True)
        )
        return Topology(COMPOSE, nodes, Underlay(mtu=min(mtu for _, mtu in found), hub=True))


def parse_underlay(text: str) -> tuple[str, int]:
    """Address with prefix length, and MTU, of what `ip -j address show` printed.

    Raises:
        LabError: There is no IPv4 address.
    """
    try:
        (link,) = json.loads(text)
        address = next(each for each in link["addr_info"] if each["family"] == "inet")
        return f"{address['local']}/{address['prefixlen']}", int(link["mtu"])
    except (ValueError, KeyError, StopIteration) as error:
        raise LabError(f"expected an IPv4 address on {UNDERLAY_DEVICE}, found {text.strip()!r}") from error


def compose_ground(stations: Sequence[Path]) -> Ground:
    """Stages of this container and up to all of the others."""

    def build(nodes: int) -> Stage:
        return ComposeStage(stations[: nodes - 1])

    return Ground(COMPOSE, build, most_nodes=1 + len(stations))


def _await_station(place: FarPlace, deadline: float) -> None:
    """Containers start at their leisure.  Raises LabError when it is late."""
    while True:
        try:
            place.work_of(())
            return
        except LabError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


def why_no_stations(stations: Sequence[Path]) -> str | None:
    """Why no stage can be had here; None: every station answers."""
    if not stations:
        return "no station was named: weft bench serve SOCKET makes one"
    deadline = time.monotonic() + SERVES_WITHIN_S
    try:
        for path in stations:
            _await_station(FarPlace(path.stem, path), deadline)
        run_command(["ip", "-V"], why="what a stage is built with")
    except LabError as error:
        return str(error)
    return None
