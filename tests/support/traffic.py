"""Traffic of a test's own making: sockets opened in a lab's namespaces, used from the test's process.

A socket belongs to the namespace it was opened in for good, so only the opening happens `inside` a place.
Nothing here measures: a transfer says whether every octet came, and how long it took for ratios alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.lab import checks
from bench.lab.commands import LabError, wait_until
from bench.lab.namespaces import Place
from bench.lab.topology import Address
from overlay.addr import Mac

# From <sched.h> and <linux/if_ether.h>; CPython has os.setns only from 3.12.
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 0x0003
UDP_SEGMENT = 103

PATIENCE_S = 15.0

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(place: Place) -> Iterator[None]:
    """This thread is in the place's namespace while the block lasts."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{place.namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(there)
        yield
    finally:
        _enter(home)
        os.close(there)
        os.close(home)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def type_in(place: Place, *lines: str) -> None:
    """Runs each line as a command in the place; the first that fails raises LabError."""
    for line in lines:
        place.run(line.split())


def open_in(place: Place, address: Address, kind: socket.SocketKind, port: int = 0) -> socket.socket:
    """A socket of that place, bound to the address."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with inside(place):
        opened = socket.socket(family, kind)
    opened.settimeout(PATIENCE_S)
    try:
        opened.bind((str(address), port))
    except OSError:
        opened.close()
        raise
    return opened


def any_address(like: Address) -> Address:
    """0.0.0.0 or ::, of that family."""
    return type(like)(0)


@contextmanager
def pinging(place: Place, address: Address) -> Iterator[None]:
    """The address is pinged while the block lasts and a little after; every echo is answered."""
    with tempfile.TemporaryFile("w+") as told:
        process = place.popen(["ping", "-n", "-i", "0.02", str(address)], stdout=told)

        def answers() -> int:
            return os.pread(told.fileno(), 1 << 24, 0).count(b"bytes from")

        def await_answer(number: int) -> None:
            deadline = time.monotonic() + PATIENCE_S
            claim = f"{number} answers of {address}"

            def has_answers() -> bool:
                if process.poll() is not None:  # without a route it ends at once
                    raise LabError(f"ping has ended with {process.returncode}, before {claim}")
                return answers() >= number

            wait_until(has_answers, claim, deadline=deadline)

        await_answer(1)
        yield
        await_answer(answers() + 2)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
        summary = os.pread(told.fileno(), 1 << 24, 0).decode()
    counted = checks.parse_ping(summary)
    in_flight = 1  # one may have been under way when ping was told to stop
    assert counted.received >= counted.sent - in_flight, summary[-400:]


# ── TCP ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of the octets one end sent to the other."""

    sent: int
    received: int
    is_intact: bool
    seconds: float

    @property
    def rate(self) -> float:
        """Octets a second; for comparing two transfers of one test, and nothing else."""
        return self.received / self.seconds


def transfer(
    source: Place, sink: Place, address: Address, octets: int, *, patience_s: float = PATIENCE_S
) -> Transfer:
    """Sends that many octets over TCP to the address, which is the sink's; gives up after `patience_s`.

    Raises:
        TimeoutError: There was no connection.
    """
    content = random.Random(octets).randbytes(octets)
    with (
        open_in(sink, any_address(address), socket.SOCK_STREAM) as listener,
        open_in(source, any_address(address), socket.SOCK_STREAM) as client,
        ThreadPoolExecutor(1) as elsewhere,
    ):
        listener.listen(1)
        client.settimeout(patience_s)
        client.connect((str(address), listener.getsockname()[1]))
        server, _ = listener.accept()
        with server:
            started_at = time.monotonic()
            sending = elsewhere.submit(_send_all, client, content)
            digest, received = _receive(server, octets, deadline=started_at + patience_s)
            seconds = time.monotonic() - started_at
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)  # a sender that is stuck must not keep us
            sending.result(PATIENCE_S)
    return Transfer(octets, received, digest == hashlib.sha256(content).digest(), seconds)


def _send_all(client: socket.socket, content: bytes) -> None:
    with suppress(OSError):
        client.sendall(content)


def _receive(server: socket.socket, octets: int, *, deadline: float) -> tuple[bytes, int]:
    digest, received = hashlib.sha256(), 0
    while received < octets and (patience := deadline - time.monotonic()) > 0:
        server.settimeout(patience)
        try:
            piece = server.recv(1 << 18)
        except TimeoutError:
            break
        if not piece:
            break
        digest.update(piece)
        received += len(piece)
    return digest.digest(), received


# ── UDP ─────────────────────────────────────────────────────────────────────────────────────────────────


def echo_over_udp(source: Place, sink: Place, address: Address, payloads: list[bytes]) -> list[bytes]:
    """Each payload sent to the address, which is the sink's, and sent back from there; what came back."""
    echoed = []
    with (
        open_in(sink, address, socket.SOCK_DGRAM) as server,
        open_in(source, any_address(address), socket.SOCK_DGRAM) as client,
    ):
        for payload in payloads:
            client.sendto(payload, server.getsockname())
            heard, sender = server.recvfrom(65535)
            server.sendto(heard, sender)
            echoed.append(client.recv(65535))
    return echoed


def send_segmented(source: Place, sink: Place, address: Address, payload: bytes, size: int) -> list[bytes]:
    """The datagrams that arrive of one that the kernel was told to cut into pieces of `size` octets."""
    with (
        open_in(sink, address, socket.SOCK_DGRAM) as server,
        open_in(source, any_address(address), socket.SOCK_DGRAM) as client,
    ):
        client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        client.sendto(payload, server.getsockname())
        return [server.recv(65535) for _ in range(-(-len(payload) // size))]


def tcp_counts(place: Place) -> dict[str, int]:
    """TcpExt and Tcp of /proc/net: retransmissions, segments out of order."""
    counted: dict[str, int] = {}
    for path in ("/proc/net/netstat", "/proc/net/snmp"):
        lines = place.run(["cat", path]).stdout.splitlines()
        for names, values in zip(lines[0::2], lines[1::2], strict=True):
            counted |= dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=True))
    return counted


def checksum_errors(place: Place) -> dict[str, int]:
    """What the place's stack has refused for a wrong checksum, by protocol; {} is as it should be."""
    v4 = place.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    v6 = place.run(["cat", "/proc/net/snmp6"]).stdout.splitlines()
    counted: dict[str, int] = {}
    for names, values in zip(v4[0::2], v4[1::2], strict=True):
        protocol = names.split(":")[0]
        pairs = zip(names.split()[1:], values.split()[1:], strict=True)
        counted |= {f"{protocol}{name}": int(value) for name, value in pairs}
    counted |= {name: int(value) for name, value in (line.split() for line in v6)}
    return {name: count for name, count in counted.items() if name.endswith("InCsumErrors") and count}


# ── Frames ──────────────────────────────────────────────────────────────────────────────────────────────


class Port:
    """A device's wire side in a test's hands: frames are sent out of it, and what passes it is seen."""

    def __init__(self, place: Place, device: str) -> None:
        with inside(place):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self._socket.bind((device, ETH_P_ALL))
        self.mac = Mac(self._socket.getsockname()[4])

    def send(self, frame: bytes) -> None:
        """Out of the device, padded to the least length of Ethernet."""
        self._socket.send(frame.ljust(60, b"\0"))

    def arrivals_until(self, *awaited: bytes, within_s: float = PATIENCE_S) -> list[bytes]:
        """The frames that came in, up to where each of `awaited` has been in one."""
        return self._until(awaited, incoming=True, within_s=within_s)

    def departures_until(self, *awaited: bytes, within_s: float = PATIENCE_S) -> list[bytes]:
        """The frames that went out, up to where each of `awaited` has been in one."""
        return self._until(awaited, incoming=False, within_s=within_s)

    def _until(self, awaited: tuple[bytes, ...], *, incoming: bool, within_s: float) -> list[bytes]:
        seen: list[bytes] = []
        missing = set(awaited)
        deadline = time.monotonic() + within_s
        while missing:
            patience = max(0.0, deadline - time.monotonic())
            if not select.select([self._socket], [], [], patience)[0]:
                raise TimeoutError(f"not among {len(seen)} frames in {within_s:g} s: {missing}")
            frame, sockaddr = self._socket.recvfrom(1 << 17)
            if (sockaddr[2] != socket.PACKET_OUTGOING) is incoming:
                seen.append(frame)
                missing = {each for each in missing if each not in frame}
        return seen

    def close(self) -> None:
        self._socket.close()


@contextmanager
def ports(*places: tuple[Place, str]) -> Iterator[list[Port]]:
    """Ports on (place, device) each, listening from now on."""
    opened: list[Port] = []
    try:
        for place, device in places:
            opened.append(Port(place, device))
        yield opened
    finally:
        for port in opened:
            port.close()


def mac_of(place: Place, device: str) -> str:
    """As iproute2 writes it."""
    path = Path("/sys/class/net", device, "address")
    return place.run(["cat", str(path)]).stdout.strip()
