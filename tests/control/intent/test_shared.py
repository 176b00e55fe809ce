"""Networks are paired by what is on the wire; what was meant to be one and is not, both sides name alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.intent.shared import pair
from control.membership.recordbody import NetworkRecord
from overlay.addr import NetworkId, Vni
from overlay.route import IpNetwork

LAB = NetworkId("lab")


@dataclass(frozen=True)
class Ours:
    id: NetworkId = LAB
    mode: str = "bridge"
    encap: str = "vxlan"
    vni: int | None = 42
    port: int = 4789
    network: IpNetwork | None = None


THEIRS = NetworkRecord(LAB, "bridge", "vxlan", Vni(42), 4789)
UDP = NetworkRecord(NetworkId("pods"), "routed", "flannel-udp", None, 8285)


def test_a_network_is_the_same_whatever_each_calls_it() -> None:
    shared, troubles = pair([Ours()], [replace(THEIRS, name=NetworkId("weft7"))], "n2")
    assert [each.network for each in shared] == ["lab"]
    assert troubles == []


def test_what_is_the_same_on_the_wire_is_paired_before_names_are_looked_at() -> None:
    ours = [Ours(NetworkId("weft0"), vni=42), Ours(NetworkId("weft1"), vni=43)]
    shared, troubles = pair(ours, [replace(THEIRS, name=NetworkId("weft0"), vni=Vni(43))], "n2")
    assert [each.network for each in shared] == ["weft1"]
    assert troubles == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vni": Vni(43)}, "VNI 42 here, 43 on n2"),
        ({"mode": "routed"}, "mode bridge here, routed on n2"),
        ({"encap": "geneve"}, "encapsulation vxlan here, geneve on n2"),
    ],
)
def test_one_name_for_two_networks_is_a_mistake_with_a_fix(change: dict[str, object], words: str) -> None:
    shared, (trouble,) = pair([Ours()], [replace(THEIRS, **change)], "n2")  # type: ignore[arg-type]
    assert shared == []
    assert words in trouble.problem
    assert trouble.fix


PODS = ip_network("10.5.0.0/16")
OVER_VXLAN = Ours(NetworkId("weft0"), "routed", "vxlan", 1, 8472, PODS)
OVER_UDP = Ours(NetworkId("flannel0"), "routed", "flannel-udp", None, 8285, PODS)


def said_of(network: Ours) -> NetworkRecord:
    """What a node that has it says of it."""
    vni = None if network.vni is None else Vni(network.vni)
    return NetworkRecord(network.id, network.mode, network.encap, vni, network.port, network=network.network)


@pytest.mark.parametrize(
    ("ours", "other", "words"),
    [
        (OVER_VXLAN, OVER_UDP, "network weft0: encapsulation vxlan here, flannel-udp on n2"),
        (OVER_UDP, OVER_VXLAN, "network flannel0: encapsulation flannel-udp here, vxlan on n2"),
        (OVER_VXLAN, replace(OVER_VXLAN, id=NetworkId("pods"), vni=2), "network weft0: VNI 1 here, 2 on n2"),
        (OVER_UDP, replace(OVER_UDP, id=NetworkId("pods"), port=8286), "port 8285 here, 8286 on n2"),
    ],
)
def test_one_overlay_in_two_forms_is_named_on_both_sides_whatever_each_calls_it(
    ours: Ours, other: Ours, words: str
) -> None:
    shared, (trouble,) = pair([ours], [said_of(other)], "n2")
    assert shared == []
    assert words in trouble.problem
    assert "another `network`" in trouble.fix


def test_two_overlays_in_two_forms_have_nothing_to_do_with_one_another() -> None:
    elsewhere = replace(OVER_UDP, network=ip_network("10.6.0.0/16"))
    assert pair([OVER_VXLAN], [said_of(elsewhere)], "n2") == ([], [])
    silent = replace(UDP, name=NetworkId("flannel0"))  # of a weft that does not say which overlay it is
    assert pair([OVER_VXLAN], [silent], "n2") == ([], [])


def test_another_port_is_shared_and_named() -> None:
    (shared,), (trouble,) = pair([Ours()], [replace(THEIRS, port=8472)], "n2")
    assert shared.theirs.port == 8472
    assert (trouble.problem, trouble.fix.partition(" on")[0]) == (
        "network lab: port 4789 here, 8472 on n2",
        "port = 4789",
    )


def test_without_a_vni_the_port_tells_networks_apart() -> None:
    ours = Ours(NetworkId("pods"), "routed", "flannel-udp", None, 8285)
    assert len(pair([ours], [UDP], "n2")[0]) == 1
    shared, (trouble,) = pair([ours], [replace(UDP, port=8286)], "n2")
    assert shared == []
    assert "port 8285 here, 8286 on n2" in trouble.problem


def test_networks_that_have_nothing_to_do_with_one_another_are_no_mistake() -> None:
    assert pair([Ours()], [UDP], "n2") == ([], [])


NETWORKS = st.lists(
    st.builds(
        NetworkRecord,
        st.sampled_from(["a", "b", "c"]).map(NetworkId),
        st.sampled_from(["bridge", "routed"]),
        st.just("vxlan"),
        st.integers(1, 3).map(Vni),
        st.sampled_from([4789, 8472]),
    ),
    max_size=4,
    unique_by=lambda each: each.name,
)


@given(NETWORKS, NETWORKS)
def test_both_sides_find_as_much_wrong_and_share_as_much(
    here: list[NetworkRecord], there: list[NetworkRecord]
) -> None:
    ours, theirs = ([_as_ours(each) for each in side] for side in (here, there))
    found, troubles = pair(ours, there, "n2")
    back, back_troubles = pair(theirs, here, "n1")
    assert len(found) == len(back)
    assert len(troubles) == len(back_troubles)


def _as_ours(record: NetworkRecord) -> Ours:
    return Ours(record.name, record.mode, record.encap, record.vni, record.port)
