"""weft's own messages come back as they went; what is too much is refused; no octets do harm."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.records import key, mac, network

from control.membership.pack import pack
from control.membership.recordbody import (
    MACS_MAX,
    RECORD_OCTETS,
    Grant,
    Holding,
    LeaseWord,
    LocalMac,
    NetworkRecord,
    encode_networks,
    parse_networks_untrusted,
)
from control.membership.recordwire import (
    BUCKETS,
    PAGE_OCTETS,
    Announcement,
    Buckets,
    Digest,
    Digests,
    Page,
    RecordMessage,
    Rumor,
    Summary,
    Want,
    Wants,
    encode_message,
    parse_message_untrusted,
)
from overlay.addr import BROADCAST, ZERO_MAC, Mac, NetworkId
from overlay.errors import MalformedError, UnsupportedError, WireError

FULL = NetworkRecord(
    name=NetworkId("pods"),
    mode="routed",
    encap="flannel-udp",
    vni=None,
    port=8285,
    vteps=(ip_address("192.0.2.1"), ip_address("2001:db8::1")),
    mac=mac(9),
    subnets=(ip_network("10.5.1.0/24"), ip_network("fd00:5::/64")),
    macs=(LocalMac(mac(1), 7), LocalMac(mac(2), (1 << 32) - 1)),
    ips=((ip_address("10.5.1.1"), mac(1)), (ip_address("fe80::1"), mac(2))),
    leases=LeaseWord(
        pool_id=bytes(range(16)),
        asks="n1",
        free=200,
        held=Holding(ip_network("10.5.1.0/24"), "n1", "id1", 1),
        knows=(("n1", "id1"), ("n2", "id2")),
        grants=(
            Grant(ip_network("10.5.1.0/24"), "n1", "id1", 1),
            Grant(ip_network("10.5.2.0/24"), "n2", "id2", 2, is_released=True),
        ),
        within=(ip_network("10.5.1.0/24"), ip_network("10.5.9.0/24")),
    ),
    network=ip_network("10.5.0.0/16"),
)
GRANT = Grant(ip_network("10.5.1.0/24"), "n1", "id1", 1)
MESSAGES: list[RecordMessage] = [
    Rumor(key("n1"), encode_networks([network(), FULL])),
    Rumor(key("n" * 128, (1 << 64) - 1, epoch=(1 << 64) - 1, weft_id="i" * 64), b"", is_answer=True),
    Announcement(key("n1"), 5000),
    Announcement(key("n1"), (1 << 32) - 1, is_answer=True),
    Announcement(key("n1"), 5000, hash=bytes(range(16))),
    Wants((Want(key("n1")), Want(key("n2"), (0, 5, 127)))),
    Wants(()),
    Page(key("n1"), 1500, 1, bytes(1500 - PAGE_OCTETS)),
    Summary(bytes(range(16))),
    Buckets(tuple(bytes((each,)) * 8 for each in range(BUCKETS))),
    Digests((0, 63), "a", "z", (Digest(key("n1"), bytes(8)),)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_went(message: RecordMessage) -> None:
    assert parse_message_untrusted(encode_message(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_cut_short_is_another_or_none(message: RecordMessage) -> None:
    whole = encode_message(message)
    for length in range(len(whole)):
        with suppress(WireError):
            assert parse_message_untrusted(whole[:length]) != message


def test_what_a_node_says_comes_back_as_it_went() -> None:
    said = (network(1, macs=3), FULL, NetworkRecord(NetworkId("bare"), "bridge", "vxlan", None, 4789))
    assert parse_networks_untrusted(encode_networks(said)) == said


@pytest.mark.parametrize(
    "said",
    [
        [network(macs=MACS_MAX + 1)],
        [network(1, macs=600, name="a"), network(2, macs=600, name="b")],
        [replace(FULL, ips=tuple((ip_address(0x0A000001 + each), mac(1)) for each in range(1025)))],
        [replace(FULL, leases=LeaseWord(bytes(16), grants=(GRANT,) * 1100))],
    ],
    ids=["macs", "macs-together", "ips", "grants"],
)
def test_more_than_one_node_may_have_is_refused_as_that(said: list[NetworkRecord]) -> None:
    with pytest.raises(UnsupportedError, match="of one node"):
        parse_networks_untrusted(encode_networks(said))


def test_as_much_as_one_node_may_have_is_taken() -> None:
    said = (network(macs=MACS_MAX),)
    assert parse_networks_untrusted(encode_networks(said)) == said


def test_ten_megabytes_are_refused_unread() -> None:
    with pytest.raises(UnsupportedError, match="octets"):
        parse_networks_untrusted(bytes(10 << 20))


def told(**changes: object) -> bytes:
    network = {"Name": "lab", "Mode": "bridge", "Encap": "vxlan", "Port": 4789, "VNI": 42}
    return pack({"Networks": [{**network, **changes}]})


@pytest.mark.parametrize(
    "body",
    [
        told(Name=""),
        told(Name="a\nb"),
        told(Mode=7),
        told(Port=0),
        told(Port=1 << 16),
        told(VNI=1 << 24),
        told(Vteps=[b"\x7f"]),
        told(Vteps=[bytes(4)]),
        told(Vteps=[ip_address("224.0.0.1").packed]),
        told(Vteps=["192.0.2.1"]),
        told(Vteps=[ip_address("192.0.2.1").packed] * 17),
        told(Mac=b"\x02"),
        told(Mac=BROADCAST),
        told(Macs=bytes(11)),
        told(Macs=ZERO_MAC + bytes(4)),
        told(Macs=Mac(b"\x01" + bytes(5)) + bytes(4)),
        told(Ips=bytes(21)),
        told(Ips=bytes(16) + mac(1)),
        told(Ips=ip_address("ff02::1").packed + mac(1)),
        told(Network=""),
        told(Network="10.5.0.1/16"),
        told(Network=7),
        told(Subnets=["10.5.1.1/24"]),
        told(Subnets=[7]),
        told(Leases={"Pool": bytes(15)}),
        told(Leases={"Pool": bytes(17)}),
        told(Leases={"Pool": bytes(16), "Grants": [["10.5.1.0/24", "n1"]]}),
        told(Leases={"Pool": bytes(16), "Grants": [["10.5.1.0/24", "n1", "id", -1, False]]}),
        told(Leases={"Pool": bytes(16), "Grants": [["10.5.1.0/24", "n1", "id", 1, 0]]}),
        told(Leases={"Pool": bytes(16), "Held": ["10.5.1.0/24", "n1", "id"]}),
        told(Leases={"Pool": bytes(16), "Knows": [["n1"]]}),
        told(Leases={"Pool": bytes(16), "Asks": b"\xff"}),
        pack({"Networks": [7]}),
        pack({"Networks": 7}),
        pack([1, 2]),
        pack({"Networks": [{"Name": "a", "Mode": "b", "Encap": "v", "Port": 1}] * 2}),
    ],
)
def test_what_no_weft_writes_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_networks_untrusted(body)


@pytest.mark.parametrize(
    "octets",
    [
        b"Z",
        b"S" + bytes(15),
        b"B" + bytes(511),
        b"D" + pack({"Buckets": bytes((64,))}),
        b"D" + pack({"Digests": [["n1", "id", 1, 1, b"short"]]}),
        b"A" + pack({"Name": "n1", "Id": "id", "Octets": 2000, "Hash": bytes(15)}),
        b"W" + pack([["n1", "id", 1, 1, [128]]]),
        b"W" + pack([["n1", "id", 1, 1, []]] * 65),
        b"P" + pack({"Name": "n", "Id": "i", "Octets": 2000, "Page": 1, "Data": bytes(1024)}),
        b"P" + pack({"Name": "n", "Id": "i", "Octets": 2000, "Page": 9, "Data": b""}),
        b"A" + pack({"Name": "n", "Id": "i", "Octets": 0}),
        b"R" + pack({"Name": "n", "Id": "i" * 65}),
        b"R" + pack({"Name": "n", "Id": "i", "Body": bytes(RECORD_OCTETS + 1)}),
    ],
)
def test_messages_beyond_their_bounds_are_refused(octets: bytes) -> None:
    with pytest.raises(WireError):
        parse_message_untrusted(octets)


@given(st.binary(max_size=200))
def test_any_octets_are_a_message_or_a_wire_error(octets: bytes) -> None:
    with suppress(WireError):
        assert parse_message_untrusted(encode_message(parse_message_untrusted(octets)))


@given(st.sampled_from(b"RrAaWPSBD"), st.binary(max_size=200))
def test_any_octets_of_a_kind_are_a_message_or_a_wire_error(kind: int, octets: bytes) -> None:
    with suppress(WireError):
        parse_message_untrusted(bytes((kind,)) + octets)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 33) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["Name", "Mode", "Encap", "VNI", "Port", "Vteps", "Mac", "Macs", "Ips", "Subnets", "Leases", "Network"]
)


@given(st.dictionaries(FIELDS, VALUES))
def test_any_values_in_any_field_are_a_network_or_a_wire_error(changes: dict[str, object]) -> None:
    with suppress(WireError):
        (said,) = parse_networks_untrusted(told(**changes))
        assert parse_networks_untrusted(encode_networks([said])) == (said,)


@given(st.binary(max_size=100))
def test_any_octets_are_networks_or_a_wire_error(octets: bytes) -> None:
    with suppress(WireError):
        parse_networks_untrusted(octets)
