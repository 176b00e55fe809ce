"""Does it carry, and how much: ping, TCP and UDP between two places, as values.

The tools are those an operator would use by hand, ping and iperf3, run inside the namespaces; their text is
parsed by the pure functions at the end of this file.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.lab.commands import LabError, end_process
from bench.lab.namespaces import Place
from bench.lab.topology import Address

# From the specification
IPV4_LARGEST_ECHO = 65507  # a 65 535 octet packet less its IP header and the echo's (RFC 791, RFC 792)

# Ours
PING_COUNT = 3
PING_INTERVAL_S = 0.2  # the least ping allows without privileges
PING_REPLY_TIMEOUT_S = 1.0
TOOL_GRACE_S = 15.0  # beyond a measurement's own time: connecting, reporting


@dataclass(frozen=True, slots=True)
class Ping:
    """One run of ping.  The round-trip times are None where nothing came back."""

    sent: int
    received: int
    rtt_min_ms: float | None = None
    rtt_avg_ms: float | None = None
    rtt_max_ms: float | None = None

    @property
    def loss(self) -> float:
        """0 … 1."""
        return 1 - self.received / self.sent if self.sent else 1.0

    @property
    def complete(self) -> bool:
        return 0 < self.sent == self.received


@dataclass(frozen=True, slots=True)
class Tcp:
    """One TCP measurement; the rate is what the receiver got."""

    gbit_s: float
    retransmits: int
    seconds: float
    sender_cpu_percent: float
    receiver_cpu_percent: float


@dataclass(frozen=True, slots=True)
class Udp:
    """One UDP measurement."""

    sent_packets: int
    lost_packets: int
    received_gbit_s: float
    jitter_ms: float
    seconds: float

    @property
    def loss(self) -> float:
        """0 … 1."""
        return self.lost_packets / self.sent_packets if self.sent_packets else 1.0

    @property
    def received_pps(self) -> float:
        return (self.sent_packets - self.lost_packets) / self.seconds


def ping(
    place: Place,
    address: Address,
    *,
    count: int = PING_COUNT,
    interval_s: float = PING_INTERVAL_S,
    size: int = 56,
    options: Iterable[str] = (),
) -> Ping:
    """Pings the address from the place; a ping nobody answers is a result, not an error.

    Args:
        size: Octets of echo data; up to IPV4_LARGEST_ECHO, which leaves in fragments.
        options: More for ping's command line (`-M do`: never fragment).
    """
    argv = _ping_argv(address, count, interval_s, size, options)
    done = place.run(argv, check=False, timeout=count * interval_s + TOOL_GRACE_S)
    return parse_ping(done.stdout or done.stderr)


def ping_all(
    pairs: Iterable[tuple[Place, Address]], *, count: int = PING_COUNT, interval_s: float = PING_INTERVAL_S
) -> Iterator[Ping]:
    """The pings of all pairs, run at once, answered in the order of `pairs`."""
    processes = [place.popen(_ping_argv(address, count, interval_s, 56, ())) for place, address in pairs]
    for process in processes:
        output, _ = process.communicate(timeout=count * interval_s + TOOL_GRACE_S)
        yield parse_ping(output)


def tcp(client: Place, server: Place, address: Address, *, seconds: int, streams: int = 1) -> Tcp:
    """What TCP carries from client to server, the server listening on `address`.

    Raises:
        LabError: iperf3 is missing or could not connect.
    """
    report = _iperf(client, server, address, seconds, ["-P", str(streams)])
    return parse_tcp(report)


def udp(client: Place, server: Place, address: Address, *, seconds: int, length: int, rate: str = "0") -> Udp:
    """What UDP carries from client to server.

    Args:
        length: Octets of payload; always said, for iperf3 chooses one by the device's MTU otherwise.
        rate: As iperf3's -b takes it; "0" floods.

    Raises:
        LabError: iperf3 is missing or could not connect.
    """
    report = _iperf(client, server, address, seconds, ["-u", "-b", rate, "-l", str(length)])
    return parse_udp(report)


def _ping_argv(
    address: Address, count: int, interval_s: float, size: int, options: Iterable[str]
) -> list[str]:
    wait = ["-W", f"{PING_REPLY_TIMEOUT_S:g}"]
    return [
        "ping",
        "-n",
        "-c",
        str(count),
        "-i",
        f"{interval_s:g}",
        "-s",
        str(size),
        *wait,
        *options,
        str(address),
    ]


def _iperf(
    client: Place, server: Place, address: Address, seconds: int, options: list[str]
) -> Mapping[str, Any]:
    with _iperf_server(server, address):
        argv = ["iperf3", "-J", "-c", str(address), "-t", str(seconds), *options]
        done = client.run(argv, check=False, timeout=seconds + TOOL_GRACE_S)
    return parse_iperf(done.stdout or done.stderr)


@contextmanager
def _iperf_server(place: Place, address: Address) -> Iterator[subprocess.Popen[str]]:
    """A server for one client, listening when the block begins."""
    process = place.popen(["iperf3", "-s", "-1", "-B", str(address), "--forceflush"])
    try:
        said: list[str] = []
        for line in process.stdout or ():
            said.append(line)
            if line.startswith("Server listening"):
                break
        else:
            raise LabError(f"iperf3 does not listen on {address} in {place.name}: {''.join(said).strip()}")
        yield process
    finally:
        end_process(process)


# ── parsing ─────────────────────────────────────────────────────────────────────────────────────────────


def parse_ping(text: str) -> Ping:
    """The closing lines of ping's output, as iputils and busybox print them.

    Raises:
        LabError: There are none: ping did not run, and `text` says why.
    """
    counts = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", text)
    if counts is None:
        raise LabError(f"expected ping's summary, found: {text.strip() or 'nothing'}")
    times = re.search(r"min/avg/max\S* = ([\d.]+)/([\d.]+)/([\d.]+)", text)
    rtts = (float(times[1]), float(times[2]), float(times[3])) if times else (None, None, None)
    return Ping(int(counts[1]), int(counts[2]), *rtts)


def parse_iperf(text: str) -> Mapping[str, Any]:
    """iperf3's JSON report.

    Raises:
        LabError: It is none, or reports an error.
    """
    try:
        report: Mapping[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        raise LabError(f"expected iperf3's report, found: {text.strip() or 'nothing'}") from None
    if "error" in report:
        raise LabError(f"iperf3: {report['error']}")
    return report


def parse_tcp(report: Mapping[str, Any]) -> Tcp:
    """The summary of a TCP run."""
    end = report["end"]
    return Tcp(
        gbit_s=end["sum_received"]["bits_per_second"] / 1e9,
        retransmits=end["sum_sent"].get("retransmits", 0),
        seconds=end["sum_received"]["seconds"],
        sender_cpu_percent=end["cpu_utilization_percent"]["host_total"],
        receiver_cpu_percent=end["cpu_utilization_percent"]["remote_total"],
    )


def parse_udp(report: Mapping[str, Any]) -> Udp:
    """The summary of a UDP run: `sum` has the sender's packets, the receiver's losses, and the sent rate."""
    total = report["end"]["sum"]
    sent = total["packets"]
    arrived = 1 - total["lost_packets"] / sent if sent else 0.0
    return Udp(
        sent_packets=sent,
        lost_packets=total["lost_packets"],
        received_gbit_s=total["bits_per_second"] * arrived / 1e9,
        jitter_ms=total["jitter_ms"],
        seconds=total["seconds"],
    )
