"""iperf3 for TCP: one stream or several, either way or both at once.

The keys are those of 3.12 and later; `sum_received` is what the far program read, not what was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.lab.checks import parse_iperf
from bench.lab.commands import LabError, end_process
from bench.lab.namespaces import Place
from bench.lab.topology import Address

# Ours
GRACE_S = 15.0  # beyond the measurement: connecting, reporting
SAYS_IT_LISTENS = "Server listening"


@dataclass(frozen=True, slots=True)
class TcpRun:
    """What arrived, of all streams and both ways together."""

    octets: int
    seconds: float
    retransmits: int

    @property
    def gbit_s(self) -> float:
        return self.octets * 8 / self.seconds / 1e9 if self.seconds else 0.0


@contextmanager
def iperf_server(place: Place, address: Address) -> Iterator[None]:
    """A server for one client, listening when the block begins."""
    process = place.popen(["iperf3", "-s", "-1", "-B", str(address), "--forceflush"])
    said: list[str] = []
    try:
        for line in process.stdout or ():
            said.append(line)
            if line.startswith(SAYS_IT_LISTENS):
                break
        else:
            raise LabError(f"iperf3 does not listen on {address} in {place.name}: {''.join(said).strip()}")
        yield
    finally:
        end_process(process)
        if process.stdout:
            process.stdout.close()


def run_client(place: Place, address: Address, seconds: float, *options: str) -> TcpRun:
    """One run against a server that listens on `address`.

    Raises:
        LabError: iperf3 is missing, or could not connect.
    """
    argv = ["iperf3", "-J", "-c", str(address), "-t", f"{max(1, round(seconds))}", *options]
    done = place.run(argv, check=False, timeout=seconds + GRACE_S)
    return parse_tcp_run(parse_iperf(done.stdout or done.stderr))


def parse_tcp_run(report: Mapping[str, Any]) -> TcpRun:
    """The sums of a report; a bidirectional one has a second set for the way back."""
    end = report["end"]
    received = [end[key] for key in ("sum_received", "sum_received_bidir_reverse") if key in end]
    sent = [end[key] for key in ("sum_sent", "sum_sent_bidir_reverse") if key in end]
    return TcpRun(
        octets=sum(total["bytes"] for total in received),
        seconds=received[0]["seconds"],
        retransmits=sum(total.get("retransmits", 0) for total in sent),
    )
