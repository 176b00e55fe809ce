"""The host's outgoing XFRM policies: octets the kernel has answered, and policies that `ip` has made."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.namespace import Namespace, exit_status_as_nobody, needs_namespaces

from overlay.errors import DeviceError
from tunnel import xfrm
from tunnel.xfrm import Policy, outgoing, policy_bell

# What Linux 6.18 (x86-64) answered, in two reads, where `ip xfrm policy add` had made these two:
#   src 2001:db8::/32 dst 2001:db8:9::1/128 dir in
#   src 192.0.2.0/24 dst 198.51.100.7/32 proto udp dir out priority 7
IN_V6 = bytes.fromhex(
    "c40000001300020001000000c04b000020010db800090000000000000000000120010db8000000000000000000000000"
    "00000000000000000a008020000000000000000000000000ffffffffffffffffffffffffffffffffffffffffffffffff"
    "ffffffffffffffff00000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000b7d4066b000000000000000000000000000000000800000000000000000000000a00100000000000"
    "00000000"
)
OUT_V4 = bytes.fromhex(
    "c40000001300020001000000c04b0000c6336407000000000000000000000000c0000200000000000000000000000000"
    "000000000000000002002018110000000000000000000000ffffffffffffffffffffffffffffffffffffffffffffffff"
    "ffffffffffffffff00000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000b7d4066b000000000000000000000000070000000100000001000000000000000a00100000000000"
    "00000000"
)
DONE = bytes.fromhex("140000000300020001000000c04b000000000000")
OUR_POLICY = Policy(ip_network("192.0.2.0/24"), ip_network("198.51.100.7/32"), protocol=17)
Test = TypeVar("Test", bound=Callable[..., object])
EVERY_V4, EVERY_V6 = ip_network("0.0.0.0/0"), ip_network("::/0")


@pytest.fixture
def host() -> Iterator[Namespace]:
    namespace = Namespace()
    with namespace:
        yield namespace
    namespace.close()


# ── Octets ──────────────────────────────────────────────────────────────────────────────────────────────


def test_of_an_answer_the_outgoing_policy_is_kept_and_there_may_be_more() -> None:
    found: list[Policy] = []
    assert xfrm._take(IN_V6 + OUT_V4, found)
    assert found == [OUR_POLICY]


def test_the_end_of_the_answer_is_the_end() -> None:
    found: list[Policy] = []
    assert not xfrm._take(OUT_V4 + DONE, found)
    assert found == [OUR_POLICY]
    assert not xfrm._take(DONE, found)


def test_a_refusal_is_the_kernels_error() -> None:
    refusal = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -errno.EPERM) + bytes(16)
    with pytest.raises(PermissionError, match="XFRM"):
        xfrm._take(refusal, [])


def answered(policy: Policy, direction: int) -> bytes:
    """The message of such a policy: the golden one with its selector and direction put anew."""
    family = socket.AF_INET if policy.source.version == 4 else socket.AF_INET6
    body = bytearray(OUT_V4)
    packed = [each.network_address.packed.ljust(16, b"\0") for each in (policy.destination, policy.source)]
    body[16:48] = b"".join(packed)
    prefixes = policy.destination.prefixlen, policy.source.prefixlen
    body[56:61] = struct.pack("=HBBB", family, *prefixes, policy.protocol)
    body[16 + 160] = direction
    return bytes(body)


def networks(version: int) -> st.SearchStrategy[xfrm.Network]:
    bits = 32 if version == 4 else 128
    kind = IPv4Network if version == 4 else IPv6Network
    return st.builds(
        lambda number, length: kind((number, length), strict=False),
        st.integers(0, 2**bits - 1),
        st.integers(0, bits),
    )


POLICIES = st.sampled_from([4, 6]).flatmap(
    lambda version: st.builds(Policy, networks(version), networks(version), st.sampled_from([0, 6, 17, 50]))
)


@given(policies=st.lists(st.tuples(POLICIES, st.sampled_from([0, 1, 2])), max_size=5))
def test_whatever_policies_are_answered_the_outgoing_ones_are_read_in_their_order(
    policies: list[tuple[Policy, int]],
) -> None:
    found: list[Policy] = []
    assert not xfrm._take(b"".join(answered(*each) for each in policies) + DONE, found)
    assert found == [policy for policy, direction in policies if direction == 1]


# ── Matching ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "applies"),
    [
        ("192.0.2.0/24", "198.51.100.7/32", 17, True),
        ("192.0.2.0/24", "198.51.100.7/32", 0, True),
        ("192.0.2.0/24", "198.51.100.7/32", 6, False),
        ("0.0.0.0/0", "0.0.0.0/0", 0, True),
        ("192.0.3.0/24", "198.51.100.7/32", 17, False),
        ("192.0.2.0/24", "198.51.100.8/32", 17, False),
        ("::/0", "::/0", 0, False),
    ],
)
def test_a_policy_applies_where_protocol_and_both_prefixes_do(
    source: str, destination: str, protocol: int, applies: bool
) -> None:
    policy = Policy(ip_network(source), ip_network(destination), protocol)
    assert policy.applies(ip_address("192.0.2.1"), ip_address("198.51.100.7")) == applies


def test_a_policy_applies_to_scoped_addresses_too() -> None:
    link_local = Policy(ip_network("fe80::/10"), ip_network("fe80::2/128"), 0)
    assert link_local.applies(ip_address("fe80::1%eth0"), ip_address("fe80::2%eth0"))
    assert not link_local.applies(ip_address("fe80::1%eth0"), ip_address("fe80::3%eth0"))


# ── The kernel ──────────────────────────────────────────────────────────────────────────────────────────


def for_real(test: Test) -> Test:
    """A test that asks the kernel."""
    marked: Test = needs_namespaces(pytest.mark.timeout(30)(pytest.mark.root(test)))
    return marked


@for_real
def test_where_there_are_no_policies_none_are_found(host: Namespace) -> None:
    assert host.run("ip xfrm policy") == ""
    assert outgoing() == ()


@for_real
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("src 192.0.2.0/24 dst 198.51.100.7/32 proto udp", OUR_POLICY),
        ("src 0.0.0.0/0 dst 198.51.100.0/25", Policy(EVERY_V4, ip_network("198.51.100.0/25"), 0)),
        (
            "src 2001:db8::1/128 dst 2001:db8:9::/48 proto tcp",
            Policy(ip_network("2001:db8::1/128"), ip_network("2001:db8:9::/48"), 6),
        ),
        ("src ::/0 dst ::/0", Policy(EVERY_V6, EVERY_V6, 0)),
        (
            "src 0.0.0.0/0 dst 198.51.100.7/32 proto udp dport 4789",
            Policy(EVERY_V4, ip_network("198.51.100.7/32"), 17),
        ),
    ],
)
@pytest.mark.parametrize(
    "end", ["", " tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel", " action block"]
)
def test_an_outgoing_policy_is_found_as_it_was_made(
    host: Namespace, words: str, end: str, expected: Policy
) -> None:
    if ":" in words:
        end = end.replace("192.0.2.", "2001:db8::")
    host.run(f"ip xfrm policy add {words} dir out{end}")
    assert outgoing() == (expected,)


@for_real
@pytest.mark.parametrize("direction", ["in", "fwd"])
def test_policies_for_other_directions_are_none_of_ours(host: Namespace, direction: str) -> None:
    host.run(f"ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir {direction}")
    assert outgoing() == ()


@for_real
def test_more_policies_than_one_read_holds_are_all_found(host: Namespace) -> None:
    wanted = [f"198.51.{high}.{low}/32" for high in (100, 101) for low in range(200)]
    for destination in wanted:
        host.run(f"ip xfrm policy add src 0.0.0.0/0 dst {destination} dir out")
    assert {str(policy.destination) for policy in outgoing()} == set(wanted)


@for_real
def test_the_bell_rings_when_a_policy_comes_and_when_it_goes(host: Namespace) -> None:
    (bell,) = policy_bell()
    try:
        assert not bell.ring()
        for verb in ("add", "del"):
            host.run(f"ip xfrm policy {verb} src 192.0.2.0/24 dst 198.51.100.7/32 dir out")
            assert bell.ring(), verb
            assert not bell.ring()
    finally:
        bell.close()


@for_real
@pytest.mark.usefixtures("host")
def test_without_the_right_asking_is_refused_and_not_answered_with_nothing() -> None:
    def ask() -> int:
        try:
            outgoing()
        except OSError as error:
            return error.errno or 0
        return 0

    assert exit_status_as_nobody(ask) == errno.EPERM


# ── No XFRM ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kernel_without_xfrm_has_no_policies_and_no_bell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    assert outgoing() == ()
    assert policy_bell() == ()


def test_a_bell_refused_for_any_other_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(DeviceError) as caught:
        policy_bell()
    assert caught.value.errno == errno.EMFILE
