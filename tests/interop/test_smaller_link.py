"""Behind a weft node's TAP there is a link smaller than the overlay, and the kernel's TCP must get through.

    n2  kernel vxlan ──── veth, all offloads on ──── n1  weft ── weft0, MTU 1450 ── acc0, MTU 1300 ── n1-host

n2 sends super-packets of TCP and does not say into which segments they are to be cut.  Cut too large, they
are refused on the way to n1-host for good: n2 is told to send less, and already does.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from support.engines import ON_BOTH
from support.lab import ROOT
from support.serving import StartLab, eventually
from support.traffic import checksum_errors, transfer

from bench.lab import checks
from bench.lab.namespaces import Lab
from bench.lab.topology import AccessLink, Attachment, NodeKind, Topology, segment

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

N1 = ip_address("10.9.0.1")
SMALL_MTU = 1300
TRANSFER_OCTETS = 16_000_000
WRONG_GUESS = "tunnel.offload.GUESS_MTU=1450"
NAIVE_MSS = 1410  # what fits the overlay; a host that knows its link would announce 1260
COLLAPSE = 20  # times slower at least; seen are thousands

PAIR = segment("small", NodeKind.WEFT, NodeKind.KERNEL_VXLAN)
ROUTED = AccessLink(
    Attachment.ROUTED, (ip_interface("10.77.0.2/24"),), (ip_interface("10.77.0.1/24"),), mtu=SMALL_MTU
)
BRIDGED = AccessLink(Attachment.BRIDGED, (ip_interface("10.9.0.77/24"),), mtu=SMALL_MTU)


def with_host(access: AccessLink, **settings: str) -> Topology:
    n1, n2 = PAIR.nodes
    changed = {f"offload.{name}": value for name, value in settings.items()}
    return replace(PAIR, nodes=(replace(n1, access=access, settings=changed), n2))


def announce_too_much(lab: Lab) -> None:
    """Has n1-host announce an MSS its link does not carry, as a host further behind a small link does."""
    lab["n1-host"].run(["ip", "route", "change", "default", "via", "10.77.0.1", "advmss", str(NAIVE_MSS)])


@pytest.mark.parametrize("access", [ROUTED, BRIDGED], ids=lambda access: str(access.attachment.value))
def test_tcp_passes_the_smaller_link_both_ways(start_lab: StartLab, access: AccessLink) -> None:
    lab = start_lab(with_host(access))
    host, n2 = access.addresses[0].ip, ip_address("10.9.0.2")
    for source, sink, address in (("n2", "n1-host", host), ("n1-host", "n2", n2)):
        carried = transfer(lab[source], lab[sink], address, TRANSFER_OCTETS)
        assert (carried.received, carried.is_intact) == (TRANSFER_OCTETS, True)
    assert checksum_errors(lab["n1-host"]) == {}


def test_a_segment_size_guessed_too_large_is_a_black_hole(start_lab: StartLab) -> None:
    host = ROUTED.addresses[0].ip
    right = start_lab(with_host(ROUTED))
    announce_too_much(right)
    healthy = transfer(right["n2"], right["n1-host"], host, TRANSFER_OCTETS)
    assert healthy.is_intact

    wrong = start_lab(with_host(ROUTED), constants=(WRONG_GUESS, "engine=python"))
    announce_too_much(wrong)
    stalled = transfer(
        wrong["n2"], wrong["n1-host"], host, TRANSFER_OCTETS, patience_s=2 * COLLAPSE * healthy.seconds
    )
    assert not stalled.is_intact
    assert healthy.rate > COLLAPSE * stalled.rate


def test_a_syn_that_names_its_segments_bounds_even_a_wrong_guess(start_lab: StartLab) -> None:
    lab = start_lab(with_host(ROUTED), constants=(WRONG_GUESS, "engine=python"))
    assert transfer(lab["n2"], lab["n1-host"], ROUTED.addresses[0].ip, TRANSFER_OCTETS).is_intact


def test_without_the_repair_the_kernel_node_has_no_tcp(start_lab: StartLab) -> None:
    lab = start_lab(with_host(ROUTED, rx_repair="off"))
    assert checks.ping(lab["n2"], N1, count=1).complete
    with pytest.raises(TimeoutError):
        transfer(lab["n2"], lab["n1"], N1, 1, patience_s=2)
    eventually("its SYNs were refused", lambda: "TcpInCsumErrors" in checksum_errors(lab["n1"]))


def test_with_the_repair_it_has(start_lab: StartLab) -> None:
    lab = start_lab(with_host(ROUTED, rx_repair="on"))
    assert transfer(lab["n2"], lab["n1"], N1, 1).is_intact
    assert checksum_errors(lab["n1"]) == {}
