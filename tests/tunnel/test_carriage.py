"""What an engine keeps of a VTEP is edited in place, and every trace of it goes when it goes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from support.doubles import (
    NETWORK,
    OURS,
    OURS_V6,
    PORT,
    VNI,
    VTEP_B,
    VTEP_C,
    VTEP_V6,
    DeviceDouble,
    UnderlayDouble,
)

from bench.lab.virtual import VirtualReactor
from overlay.addr import IpAddress, Vtep
from overlay.bridge import Bridge, BridgePolicy
from overlay.tables import Tables
from overlay.verdict import Decision, Deliver
from tunnel.carriage import SEGMENT_LIMITS_MAX, NetworkCarriage, VtepCarriage
from tunnel.flows import Dependents, Flow
from tunnel.interfaces import Attachment, SockAddr
from tunnel.vxlan import HEADER_LENGTH, build_header

B = Vtep(VTEP_B, PORT)
LINK_LOCAL = ip_address("fe80::2%eth0")


@pytest.fixture
def underlay() -> UnderlayDouble:
    return UnderlayDouble(VirtualReactor(), OURS)


@pytest.fixture
def network() -> NetworkCarriage:
    device = DeviceDouble(VirtualReactor())
    tables = Tables()
    tables.add_network(NETWORK)
    bridge = Bridge(BridgePolicy(NETWORK, device.mac), tables)
    attachment = Attachment(NETWORK, VNI, PORT, device, bridge, overlay_mtu=1450)
    return NetworkCarriage(attachment, Dependents(), now=0.0)


@pytest.mark.parametrize(("ours", "vtep", "overhead"), [(OURS, VTEP_B, 50), (OURS_V6, VTEP_V6, 70)])
@pytest.mark.parametrize("mtu", [1280, 1500, 9000])
def test_the_longest_frame_is_what_the_underlay_leaves(
    ours: IpAddress, vtep: IpAddress, overhead: int, mtu: int
) -> None:
    underlay = UnderlayDouble(VirtualReactor(), ours, mtu=mtu)
    carriage = VtepCarriage(Vtep(vtep, PORT), underlay, Dependents())
    assert carriage.frame_max == mtu - overhead + 14
    assert not carriage.path_is_limited
    carriage.limit_path(mtu - 1)
    assert carriage.frame_max == mtu - 1 - overhead + 14
    assert carriage.path_is_limited


def test_a_vtep_no_underlay_reaches_has_no_sender() -> None:
    carriage = VtepCarriage(Vtep(VTEP_V6, PORT), None, Dependents())
    assert carriage.senders == ()
    assert carriage.sockaddr[0] == str(VTEP_V6)


def test_a_vtep_whose_scope_is_not_there_is_kept_until_it_is() -> None:
    underlay = UnderlayDouble(VirtualReactor(), OURS_V6)
    underlay.scopeless.add(LINK_LOCAL)
    carriage = VtepCarriage(Vtep(LINK_LOCAL, PORT), underlay, Dependents())
    assert carriage.sockaddr == (str(LINK_LOCAL), PORT)
    underlay.scopeless.clear()
    carriage.route(Vtep(LINK_LOCAL, PORT), underlay)
    assert carriage.sockaddr == underlay.sockaddr(LINK_LOCAL, PORT)


def test_a_known_vtep_is_edited_and_keeps_its_flows_and_counts(
    network: NetworkCarriage, underlay: UnderlayDouble
) -> None:
    network.program_vtep(B, underlay, Dependents())
    carriage = network.vteps[VTEP_B]
    carriage.ingress.activate(Flow(bytes(12), Decision(Deliver(), bytes(12)), target=None, now=0.0))
    carriage.sent_frames = 7
    network.program_vtep(Vtep(VTEP_B, 8472), underlay, Dependents())
    assert network.vteps[VTEP_B] is carriage
    assert carriage.sockaddr == (str(VTEP_B), 8472)
    assert (len(carriage.ingress.active), carriage.sent_frames) == (1, 7)


def test_a_vtep_withdrawn_is_known_under_no_name(network: NetworkCarriage, underlay: UnderlayDouble) -> None:
    network.program_vtep(B, underlay, Dependents())
    network.withdraw_vtep(VTEP_B)
    network.withdraw_vtep(VTEP_B)  # idempotent
    assert (network.vteps, network.by_host) == ({}, {})


def test_a_vtep_whose_host_is_written_otherwise_now_is_no_longer_known_by_the_old_name(
    network: NetworkCarriage,
) -> None:
    # Without an underlay a link-local VTEP is written with its scope, with one without.
    network.program_vtep(Vtep(LINK_LOCAL, PORT), None, Dependents())
    before = set(network.by_host)
    underlay = UnscopedUnderlay(VirtualReactor(), OURS_V6)
    network.program_vtep(Vtep(LINK_LOCAL, PORT), underlay, Dependents())
    assert set(network.by_host) == {"fe80::2"} != before
    network.withdraw_vtep(LINK_LOCAL)
    assert network.by_host == {}


def test_of_two_vteps_of_one_host_either_may_go_first(network: NetworkCarriage) -> None:
    underlay = UnscopedUnderlay(VirtualReactor(), OURS_V6)
    other = ip_address("fe80::2%eth1")
    for address in (LINK_LOCAL, other):
        network.program_vtep(Vtep(address, PORT), underlay, Dependents())
    network.withdraw_vtep(LINK_LOCAL)
    network.withdraw_vtep(other)
    assert network.by_host == {}


class UnscopedUnderlay(UnderlayDouble):
    """Names hosts as a socket does: a scope is a number beside the host."""

    def sockaddr(self, address: IpAddress, port: int) -> SockAddr:
        return (str(address).split("%", maxsplit=1)[0], port, 0, 2)


def test_the_vxlan_header_stands_before_every_frame_read(network: NetworkCarriage) -> None:
    assert all(bytes(slot.datagram[:HEADER_LENGTH]) == build_header(VNI) for slot in network.slots)


def test_the_smallest_segment_known_counts(network: NetworkCarriage) -> None:
    for mss in (1400, 1200, 1300):
        network.note_segment_limit(b"key", mss)
    assert network.segment_limits == {b"key": 1200}


def test_only_so_many_segment_limits_are_remembered(network: NetworkCarriage) -> None:
    for number in range(SEGMENT_LIMITS_MAX + 10):
        network.note_segment_limit(number.to_bytes(4, "big"), 1400)
    assert len(network.segment_limits) == SEGMENT_LIMITS_MAX
    assert (0).to_bytes(4, "big") not in network.segment_limits


def test_a_device_is_not_charged_for_what_was_lost_before_it_was_ours(network: NetworkCarriage) -> None:
    device = DeviceDouble(VirtualReactor())
    device.lost = 5
    network.use_device(device, 1400)
    assert (network.overruns_seen, network.overlay_mtu) == (5, 1400)


def test_the_flood_list_is_the_carriages_in_its_order(
    network: NetworkCarriage, underlay: UnderlayDouble
) -> None:
    for address in (VTEP_B, VTEP_C):
        network.program_vtep(Vtep(address, PORT), underlay, Dependents())
    network.program_flood((VTEP_C, VTEP_B))
    assert [vtep.id for vtep in network.flood] == [VTEP_C, VTEP_B]
