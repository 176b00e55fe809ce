"""Both engines on the same input: same octets out, same counters, same drop reasons, same flows remembered.

The Python engine is the specification.  What goes in is generated: frames of every kind and garbage from
the device, datagrams and runs of them from VTEPs and strangers, changes to the tables in between.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption, IPOption_NOP
from support.frames import (
    IP4_A,
    IP4_B,
    MAC_A,
    MAC_B,
    arp_request,
    echo4,
    ether,
    neighbor_advertisement,
    neighbor_solicitation,
    tcp4,
    udp4,
    udp6,
)
from support.pace import pace
from support.super_frames import Burst, bursts
from support.twins import (
    NETWORK,
    PLAIN,
    STRANGER,
    VTEPS,
    Twin,
    assert_same_books,
    encapsulated,
    run_both,
    twin,
)

from overlay.addr import BROADCAST, Mac
from overlay.discovery import may_be_discovery_untrusted
from overlay.fdb import Origin
from overlay.tables import FdbRemove, FdbReplace, FloodReplace, VtepRemove
from overlay.verdict import DropReason
from tunnel.entropy import flow_hash_untrusted
from tunnel.interfaces import Strictness
from tunnel.ladder import Feature

__all__ = ["pace"]

# Two engines, 150 scripts, on a machine that may be busy.  The native engine knows no paces.
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("pace")]

pytest.importorskip("tunnel._native", reason="the native engine is not built: see `weft version`")

Step = Callable[[Twin], None]
MACS = (MAC_A, MAC_B, BROADCAST, Mac(b"\x02\x00\x00\x00\x00\x0c"), Mac(b"\x01\x80\xc2\x00\x00\x0e"))
EXPERIMENTAL = b"\x88\xb5"
# Scripts take their time, and all of a test have the same pace.
SUPPRESSED = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)


@dataclass(frozen=True)
class Named:
    """A step, and what it is called when a run fails."""

    name: str
    step: Step

    def __call__(self, engine: Twin) -> None:
        self.step(engine)

    def __repr__(self) -> str:
        return self.name


# ── What goes in ────────────────────────────────────────────────────────────────────────────────────────

TYPICAL = (
    arp_request(),
    arp_request(tags=(7,)),
    neighbor_solicitation(),
    neighbor_advertisement(),
    echo4(b"ping"),
    echo4(bytes(1472)),
    tcp4(b"data" * 100),
    tcp4(flags="S", options=[("MSS", 900)]),
    udp4(b"x" * 64),
    udp4(b"x" * 64, tags=(5, 6)),
    udp6(b"y" * 200),
)
raw_frames = st.builds(
    lambda destination, source, payload: destination + source + EXPERIMENTAL + payload,
    st.sampled_from(MACS),
    st.sampled_from(MACS),
    st.binary(max_size=1500),
)
frames = st.sampled_from(TYPICAL) | raw_frames | st.binary(min_size=1, max_size=120)


@st.composite
def mutated(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    """A frame with a few octets of it changed, or its end cut off."""
    octets = bytearray(draw(source))
    for _ in range(draw(st.integers(0, 3))):
        octets[draw(st.integers(0, len(octets) - 1))] = draw(st.integers(0, 255))
    return bytes(octets[: draw(st.integers(1, len(octets)))]) if draw(st.booleans()) else bytes(octets)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A virtio header that need not fit its frame."""
    numbers = st.sampled_from([0, 1, 6, 14, 16, 34, 54, 1000, 65535])
    flags, kind = draw(st.sampled_from([0, 1, 2])), draw(st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x85]))
    return struct.pack("=BBHHHH", flags, kind, *(draw(numbers) for _ in range(4)))


def from_device(burst: list[bytes], header: bytes = PLAIN) -> Named:
    return Named(
        f"from_device({burst!r}, {header!r})", lambda engine: engine.from_device(*burst, header=header)
    )


def is_said_at_once(burst: list[bytes]) -> bool:
    """Whether it does not matter where a turn ends in it: none of its frames is for another one's source."""
    return len(burst) == 1 or not {each[6:12] for each in burst} & {each[:6] for each in burst}


def from_vtep(datagrams: list[bytes], sender: int = 0, tos: int = 0) -> Named:
    address = (*VTEPS, STRANGER)[sender]
    return Named(
        f"from_vtep({datagrams!r}, {sender}, {tos})",
        lambda engine: engine.from_vtep(*datagrams, sender=address, tos=tos),
    )


def apply(change: FdbReplace | FdbRemove | FloodReplace | VtepRemove) -> Named:
    return Named(f"apply({change!r})", lambda engine: engine.apply(change))


def super_frame(burst: Burst) -> Named:
    return from_device([burst.whole], burst.header)


def run_of(burst: Burst, sender: int, tos: int, spoilt: int) -> Named:
    """Its segments in one run; one of them spoilt now and then."""
    segments = encapsulated(*burst.segments)[:40]
    if spoilt < len(segments):
        segments[spoilt] = segments[spoilt][:-1] + bytes([segments[spoilt][-1] ^ 1])
    return from_vtep(segments, sender, tos)


@st.composite
def table_changes(draw: st.DrawFn) -> Named:
    """A MAC bound or unbound, another flood list, a VTEP that leaves or comes."""
    mac, vtep = draw(st.sampled_from(MACS[:2] + MACS[3:4])), draw(st.sampled_from(VTEPS))
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return Named("know all", lambda engine: engine.know(*VTEPS))
    if kind == 1:
        return apply(FdbRemove(NETWORK, mac))
    if kind == 2:
        return apply(VtepRemove(NETWORK, vtep))
    origin = draw(st.sampled_from([Origin.CONTROL, Origin.STATIC, Origin.LEARNED]))

    def bind(engine: Twin) -> None:
        if vtep in engine.tables[NETWORK].vteps:
            engine.apply(FdbReplace(NETWORK, mac, vtep, origin, 0.0))

    return Named(f"bind {mac!r} to {vtep} by {origin}", bind)


marks = st.sampled_from([0, 0, 0, 1, 2, 3, 0xB8])
senders = st.sampled_from([0, 0, 0, 1, 2])
some_bursts = bursts(octets=st.integers(1, 30), size=st.sampled_from([7, 100, 480, 1000, 1200]))
vxlan_headers = st.sampled_from(
    [b"\x08\0\0\0\0\0\x2a\0"] * 4 + [b"\0\0\0\0\0\0\x2a\0", b"\x88@\0\1\0\0\x2a\0", b"\x08\0\0\0\0\0\x2b\0"]
)
steps = st.one_of(
    st.lists(frames, min_size=1, max_size=4).filter(is_said_at_once).map(from_device),
    st.builds(
        from_device, st.lists(mutated(frames), min_size=1, max_size=2).filter(is_said_at_once), headers()
    ),
    st.builds(
        lambda count, header: from_device([udp4(b"x" * 64)] * count, header),
        st.integers(3, 40),
        st.sampled_from([PLAIN, b"\x01" + bytes(5) + struct.pack("=HH", 34, 6)]),
    ),
    st.builds(lambda frame: from_device([frame], PLAIN), mutated(frames)),
    some_bursts.map(super_frame),
    st.builds(lambda burst, header: from_device([burst.whole], header), some_bursts, headers()),
    st.builds(
        lambda burst, changed: from_device([changed + burst.whole[len(changed) :]], burst.header),
        some_bursts,
        st.binary(max_size=60),
    ),
    st.builds(
        lambda header, inside, sender, tos: from_vtep([header + inside], sender, tos),
        vxlan_headers,
        mutated(frames) | some_bursts.map(lambda burst: burst.whole),
        senders,
        marks,
    ),
    st.builds(
        lambda octets, sender: from_vtep([octets], sender), st.binary(min_size=1, max_size=60), senders
    ),
    st.builds(run_of, some_bursts, senders, marks, st.integers(0, 60)),
    st.builds(
        lambda inside, count: from_vtep(encapsulated(*[inside] * count)), mutated(frames), st.integers(2, 20)
    ),
    table_changes(),
)


# ── What comes out ──────────────────────────────────────────────────────────────────────────────────────


def by_flow(told: Sequence[tuple[object, bytes]]) -> dict[tuple[object, ...], list[tuple[object, bytes]]]:
    """Each flow's frames in their order.  Which of two flows comes first is nobody's promise.

    Frames between the same two MACs that leave by different sockets are different flows, and so are those
    that are asked about each time.
    """
    flows: dict[tuple[object, ...], list[tuple[object, bytes]]] = {}
    for beside, octets in told:
        is_written = isinstance(beside, bytes)  # to the device; else it is behind a VXLAN header
        frame, socket = (octets, None) if is_written else (octets[8:], beside)
        flow = (socket, frame[:12], may_be_discovery_untrusted(frame))
        flows.setdefault(flow, []).append((beside, octets))
    return flows


def assert_alike(python: Twin, native: Twin) -> None:
    """All that can be seen of two engines is the same."""
    assert by_flow(native.written) == by_flow(python.written)
    for vtep, arrived in python.arrived.items():
        assert by_flow(native.arrived[vtep]) == by_flow(arrived)
    assert_same_books(python, native)
    assert known_macs(native) == known_macs(python)


def known_macs(engine: Twin) -> set[tuple[object, ...]]:
    """Which MAC is behind which VTEP, and who says so."""
    return {(entry.mac, entry.vtep, entry.origin) for entry in engine.tables[NETWORK].fdb.entries()}


@settings(max_examples=150, suppress_health_check=SUPPRESSED)
@given(script=st.lists(steps, min_size=1, max_size=12))
def test_whatever_comes_both_engines_do_the_same(script: list[Step]) -> None:
    run_both(twin, assert_alike, script)


@pytest.mark.parametrize(
    "others",
    [{"strictness": Strictness.LINUX}, {"suppresses": False}, {"repairs": False}, {"overlay_mtu": 600}],
    ids=str,
)
@settings(max_examples=25, suppress_health_check=SUPPRESSED)
@given(script=st.lists(steps, min_size=1, max_size=12))
def test_however_the_network_is_set_both_engines_do_the_same(
    others: dict[str, object], script: list[Step]
) -> None:
    run_both(twin, assert_alike, script, **others)


@settings(max_examples=40, suppress_health_check=SUPPRESSED)
@given(
    burst=bursts(size=st.sampled_from([200, 1000, 1300]), octets=st.integers(1, 46), ip_options=st.just(0))
)
def test_a_super_frame_that_one_cuts_the_other_puts_together(burst: Burst) -> None:
    def there_and_back(engine: Twin) -> None:
        engine.apply(FdbReplace(NETWORK, MAC_B, VTEPS[0], Origin.CONTROL, 0.0))
        engine.from_device(burst.whole, header=burst.header)
        crossed = [octets for _, octets in engine.arrived[VTEPS[0]]]
        turned = [octets[:8] + octets[14:20] + octets[8:14] + octets[20:] for octets in crossed]
        engine.from_vtep(turned[0])
        engine.from_vtep(*turned)

    run_both(twin, assert_alike, [there_and_back])


def test_without_segmentation_both_send_one_by_one() -> None:
    def lower(engine: Twin) -> None:
        engine.underlay.ladder.lower(Feature.UDP_GSO, "a test", now=0.0)
        engine.datapath.expire(now=engine.reactor.time())

    run_both(twin, assert_alike, [lower, super_frame(Burst(octets=20_000)), from_device([tcp4(b"data")] * 5)])


def test_a_checksum_is_finished_once_for_all_copies_of_a_frame_too_long() -> None:
    """Where it overwrites the addresses, a second time would tell another station that it is too long."""
    burst = Burst(octets=1440, size=480, tags=(100, 7), tcp_options=2)
    run_both(twin, assert_alike, [from_device([burst.whole], b"\x01" + bytes(9))], repairs=False)


@pytest.mark.parametrize("order", ["whole, cut, whole", "cut, cut, whole, cut"])
@pytest.mark.parametrize("kind", ["python", "native"])
def test_a_frame_cut_off_before_its_ports_is_of_another_flow(kind: str, order: str) -> None:
    """What lies behind it, or what was remembered of the frame before it, says nothing of it."""
    whole = udp4(b"x" * 64)
    frames = {"whole": whole, "cut": whole[:36]}
    with twin(kind) as engine:
        engine.apply(FdbReplace(NETWORK, MAC_B, VTEPS[0], Origin.CONTROL, 0.0))
        said = [frames[each] for each in order.split(", ")]
        for each in said:
            engine.from_device(each)
        count = len(engine.underlay.senders)
        expected = [(flow_hash_untrusted(each) % count, each) for each in said]
        assert len({sender for sender, _ in expected}) == 2
        assert [(sender, octets[8:]) for sender, octets in engine.arrived[VTEPS[0]]] == expected


@pytest.mark.parametrize("kind", ["python", "native"])
def test_a_long_frame_behind_short_segments_keeps_the_receivers_limit(kind: str) -> None:
    """Whoever is first in a turn: a segment longer than the receiver said would be lost on its way there."""
    syn = ether(
        IP(src=IP4_A, dst=IP4_B), TCP(flags="S", options=[("MSS", 900)]), source=MAC_A, destination=MAC_B
    )
    short = Burst(octets=2000, size=1000)
    long = Burst(octets=9000, size=900, sequence=2100)
    with twin(kind) as engine:
        engine.apply(FdbReplace(NETWORK, MAC_B, VTEPS[0], Origin.CONTROL, 0.0))
        engine.from_device(syn)
        frames = [between(MAC_B, MAC_A, each) for each in (*short.segments, long.whole)]
        engine.from_vtep(*encapsulated(frames[0]))  # from here on its flow is remembered
        engine.written.clear()
        engine.arrive(*encapsulated(*frames[:2]))
        engine.from_vtep(*encapsulated(frames[2]))
        assert engine.written[-1] == (long.header, frames[2])


LIAR = Mac(b"\x02\x00\x00\x00\x00\x66")


def liar(total: int) -> bytes:
    """A frame of 248 octets that says its packet is so long."""
    octets = bytearray(between(LIAR, MAC_B, udp4(bytes(248 - 42))))
    octets[16:18] = total.to_bytes(2, "big")
    return bytes(octets)


def honest() -> list[bytes]:
    """Six frames as long."""
    return [between(MAC_A, MAC_B, udp4(bytes([number]) * (248 - 42))) for number in range(6)]


@pytest.mark.parametrize("kind", ["python", "native"])
def test_who_lies_about_its_length_takes_no_other_datagrams_along(kind: str) -> None:
    with twin(kind) as engine:
        engine.from_vtep(*encapsulated(liar(0xFFFF), *honest()))
        assert [frame for _, frame in engine.written if frame[6:12] == MAC_A] == honest()
        assert engine.statistics().ledger.received == 7


@pytest.mark.parametrize("kind", ["python", "native"])
def test_who_says_to_be_as_long_as_the_run_costs_it_by_name_and_number(kind: str) -> None:
    with twin(kind) as engine:
        engine.from_vtep(*encapsulated(liar(7 * 256 - 8 - 14), *honest()))
        assert engine.written == []
        assert engine.drops() == {DropReason.INNER_MALFORMED: 7}


@pytest.mark.parametrize("kind", ["python", "native"])
def test_a_payload_that_looks_like_a_datagram_is_none(kind: str) -> None:
    """An honest super-frame from behind a kernel VXLAN node; what its payload says no VTEP ever sent."""
    size = 400
    planted = encapsulated(between(LIAR, MAC_B, udp4(b"planted")))[0]
    payload = bytes(size - 50) + planted + bytes(2 * size)
    frame = between(MAC_A, MAC_B, udp4(payload))
    datagram = encapsulated(frame)[0]
    assert datagram[size:].startswith(planted)
    pieces = [datagram[at : at + size] for at in range(0, len(datagram), size)]
    with twin(kind) as engine:
        engine.from_vtep(*pieces)
        assert engine.written == []
        assert engine.drops() == {DropReason.INNER_MALFORMED: len(pieces)}
        assert not [mac for mac, *_ in known_macs(engine) if mac == LIAR]


@pytest.mark.parametrize("kind", ["python", "native"])
def test_frames_of_one_flow_take_one_sender_whatever_lies_between(kind: str) -> None:
    """UDP from and to the same addresses and ports, or TCP behind IP options that look like it."""

    def tcp(number: int, options: Sequence[IPOption] = ()) -> bytes:
        return ether(IP(src=IP4_A, dst=IP4_B, options=[*options]) / TCP(sport=5060, dport=5060, seq=number))

    udp = ether(IP(src=IP4_A, dst=IP4_B) / UDP(sport=5060, dport=5060))
    with twin(kind) as engine:
        engine.apply(FdbReplace(NETWORK, MAC_B, VTEPS[0], Origin.CONTROL, 0.0))
        for said in (tcp(1), udp, tcp(2), tcp(3, [IPOption_NOP()]), tcp(4)):
            engine.from_device(said)
        count = len(engine.underlay.senders)
        expected = [flow_hash_untrusted(octets[8:]) % count for _, octets in engine.arrived[VTEPS[0]]]
        assert len(set(expected)) == 2
        assert [sender for sender, _ in engine.arrived[VTEPS[0]]] == expected


@pytest.mark.parametrize("tags", [(), (7,), (5, 7)])
@pytest.mark.parametrize("options", [[], [IPOption_NOP()]], ids=["plain", "ip options"])
@pytest.mark.parametrize("kind", ["python", "native"])
def test_the_limit_of_a_receiver_is_heard_in_whatever_its_syn_is_wrapped(
    kind: str, options: list[IPOption], tags: tuple[int, ...]
) -> None:
    ip = IP(src=IP4_A, dst=IP4_B, options=options)
    syn = ether(ip, TCP(flags="S", options=[("MSS", 600)]), source=MAC_A, destination=MAC_B, tags=tags)
    burst = Burst(octets=9000, size=900, tags=tags)
    with twin(kind) as engine:
        engine.apply(FdbReplace(NETWORK, MAC_B, VTEPS[0], Origin.CONTROL, 0.0))
        engine.from_device(syn)
        engine.from_vtep(*encapsulated(between(MAC_B, MAC_A, burst.whole)))
        header, _ = engine.written[-1]
        assert struct.unpack("=BBHHHH", header)[3] == 600


def test_more_flows_than_are_merged_at_once_are_carried_all_the_same() -> None:
    """Seventy, the first six of which are no longer looked for when they go on."""

    def frame(flow: int) -> bytes:
        ip = IP(src=IP4_A, dst=IP4_B, flags="DF")
        return between(MAC_A, MAC_B, udp4(bytes([flow]) * 64, ip=ip, sport=5000 + flow))

    def interleaved(engine: Twin) -> None:
        engine.from_vtep(*encapsulated(frame(0)))
        engine.written.clear()
        flows = (*range(70), *range(69, 19, -1), *range(5))
        engine.from_vtep(*encapsulated(*map(frame, flows)))
        assert len(engine.written) == 70 + 5
        assert sum(frame.count(bytes([69]) * 64) for _, frame in engine.written) == 2

    run_both(twin, assert_alike, [interleaved])


def between(source: Mac, destination: Mac, octets: bytes) -> bytes:
    return destination + source + octets[12:]
