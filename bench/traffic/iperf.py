"""iperf3 for TCP: one stream or several, either way or both at once.

The keys are those of 3.12 and later; `sum_received` is what the far program read, not what was sent.

Segments carry a multiple of 32 octets.  A processor that copies by `rep movsb` may be slow where the
destination lies a little after the source, modulo a page: an AMD EPYC of the third generation copies 2 GB/s
instead of 35 where it is 1 to 31 octets.  iperf3 writes from the start of one page-aligned buffer, so each
partial write moves the two against each other by whole segments; and once they are a bad distance apart they
stay so, for a sender that is slow makes no more partial writes.  In four of six runs over weft a third to
three quarters of the sender's copying was of that kind, and none where the sender itself was the narrowest
place, as with kernel VXLAN.
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

# From the specification
IP_AND_TCP = 20 + 20  # RFC 791, RFC 9293
TIME_STAMPS = 12  # RFC 7323, with their padding; an MSS counts them (RFC 6691)

# Ours
COPY_ALIGNMENT = 32
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


def segment_payload(mtu: int) -> int:
    """Octets of the stream in a full segment, over IPv4 and with time stamps."""
    return (mtu - IP_AND_TCP - TIME_STAMPS) // COPY_ALIGNMENT * COPY_ALIGNMENT


def run_client(place: Place, address: Address, seconds: float, mtu: int, *options: str) -> TcpRun:
    """One run against a server that listens on `address`, over devices of that MTU.

    Raises:
        LabError: iperf3 is missing, or could not connect.
    """
    mss = segment_payload(mtu) + TIME_STAMPS
    timing = ["-t", f"{max(1, round(seconds))}", "-M", f"{mss}"]
    argv = ["iperf3", "-J", "-c", str(address), *timing, *options]
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
