"""The native engine by itself: its worker, its bell, its end.  What it does with frames the twins show.

Everything runs on socket pairs and loopback (`support.twins`), most of it with the worker's own thread.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.doubles import mac
from support.frames import MAC_A, MAC_B, arp_request, tcp4, udp4
from support.super_frames import Burst
from support.twins import (
    NETWORK,
    OURS,
    STRANGER,
    VTEPS,
    PairDevice,
    Twin,
    balance,
    encapsulated,
    free_port,
    twin,
)

from overlay.addr import IpAddress, Mac, NetworkId, Vni, Vtep
from overlay.bridge import Bridge, BridgePolicy
from overlay.errors import DeviceError
from overlay.fdb import Origin
from overlay.tables import FdbRemove, FdbReplace, FloodReplace, VtepReplace
from overlay.verdict import Decision, Drop, DropReason, Encapsulate
from tunnel.interfaces import Activity, Attachment, Buffer, Point
from tunnel.ladder import Feature
from tunnel.meter import UpcallKind

NOT_BUILT = "the native engine is not built: see `weft version`"
_native = pytest.importorskip("tunnel._native", reason=NOT_BUILT)
nativedatapath = pytest.importorskip("tunnel.nativedatapath", reason=NOT_BUILT)

PATIENCE_S = 10.0
FLOOD = 60_000  # frames, each of another source
OUT = tcp4(b"out")
IN = MAC_A + MAC_B + OUT[12:]


def eventually(engine: Twin, claim: str, condition: Callable[[], bool]) -> None:
    """Lets the loop run until the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{claim}: {engine.statistics()}"
        engine.reactor.step(patience_s=0.01)
        engine._collect()


def bind(engine: Twin, mac: Mac = MAC_B, vtep: int = 0) -> None:
    engine.apply(FdbReplace(NETWORK, mac, VTEPS[vtep], Origin.CONTROL, 0.0))


# ── Numbers and words ───────────────────────────────────────────────────────────────────────────────────


def test_every_reason_has_one_number() -> None:
    numbers, reasons = nativedatapath.NUMBERS, nativedatapath.REASONS
    assert sorted(numbers.values()) == list(range(len(DropReason)))
    assert set(reasons) == set(DropReason)
    assert [reason.name for reason in reasons[: len(_native.REASONS)]] == list(_native.REASONS)
    assert len(DropReason) <= _native.REASONS_MAX


# ── The worker ──────────────────────────────────────────────────────────────────────────────────────────


def test_frames_cross_while_the_loop_is_busy() -> None:
    with twin("native", starts=True) as engine:
        bind(engine)
        engine.device.host.send(bytes(10) + OUT)
        eventually(engine, "the flow is known", lambda: engine.statistics().ledger.sent == 1)
        for _ in range(50):
            engine.device.host.send(bytes(10) + OUT)
        deadline = time.monotonic() + PATIENCE_S
        while engine.statistics().ledger.sent < 51:  # the reactor has no turn meanwhile
            assert time.monotonic() < deadline
        engine.settle()
        assert [octets[8:] for _, octets in engine.arrived[VTEPS[0]]] == [OUT] * 51


def test_a_verdict_forgotten_under_load_is_never_used_again() -> None:
    """While a thread floods, the MAC moves from VTEP to VTEP: after `apply` no frame goes to the old one."""
    with twin("native", starts=True) as engine:
        bind(engine)
        is_over = threading.Event()

        def flood() -> None:
            while not is_over.is_set():
                for _ in range(20):
                    try:
                        engine.device.host.send(bytes(10) + OUT)
                    except BlockingIOError:
                        break
                time.sleep(0)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            for turn in range(200):
                old, new = VTEPS[turn % 2], VTEPS[(turn + 1) % 2]
                bind(engine, vtep=(turn + 1) % 2)
                before = sent_to(engine)
                engine.reactor.step(patience_s=0.002)
                assert sent_to(engine)[old] == before[old], f"turn {turn}: sent to where it was"
                if turn % 10 == 0:
                    await_more(engine, new, before[new])
        finally:
            is_over.set()
            flooding.join()
        eventually(engine, "it is quiet", lambda: is_quiet(engine))
        balance(engine)


def await_more(engine: Twin, vtep: IpAddress, before: int) -> None:
    eventually(engine, "it is followed", lambda: sent_to(engine)[vtep] > before)


def sent_to(engine: Twin) -> dict[object, int]:
    return {each.vtep: each.sent_frames for each in engine.statistics().vteps}


def is_quiet(engine: Twin) -> bool:
    """Nothing moves, nothing waits."""
    before = engine.statistics().ledger
    engine.reactor.step(patience_s=0.02)
    return engine.statistics().ledger == before and before.held == 0


def test_a_million_new_flows_are_limited_and_bounded() -> None:
    """Of random sources each is its own; what they share ends first, and a known flow does not suffer."""
    with twin("native") as engine:
        bind(engine)
        engine.from_device(OUT)
        began_at = time.monotonic()
        for number in range(FLOOD):
            frame = MAC_B + b"\x06" + number.to_bytes(5, "big") + OUT[12:60]
            while True:
                try:
                    engine.device.host.send(bytes(10) + frame)
                    break
                except BlockingIOError:  # the loop never answers: only the lane runs
                    engine.lane.turn()
        while engine.lane.turn():
            pass
        drops = engine.drops()
        rate, burst = UpcallKind.NEW_FLOW.value  # however slow this machine is
        allowed = burst + rate * (time.monotonic() - began_at)
        assert engine.statistics().ledger.held <= allowed
        assert drops[DropReason.UPCALL_LIMIT] + drops.get(DropReason.UPCALL_OVERFLOW, 0) >= FLOOD - allowed
        sent = engine.statistics().ledger.sent
        engine.device.host.send(bytes(10) + OUT)
        engine.lane.turn()
        assert engine.statistics().ledger.sent == sent + 1
        engine.datapath.expire(now=time.monotonic() + 2.0)
        assert engine.statistics().ledger.held == 0
        assert engine.drops()[DropReason.UPCALL_TIMEOUT] > 10_000


def test_frames_beyond_what_one_flow_may_hold_overflow() -> None:
    with twin("native") as engine:
        for _ in range(70):
            engine.device.host.send(bytes(10) + OUT)
        while engine.lane.turn():
            pass
        assert engine.statistics().ledger.held == 64
        assert engine.drops() == {DropReason.UPCALL_OVERFLOW: 6}
        engine.settle()
        assert engine.statistics().ledger.held == 0
        assert len(engine.arrived[VTEPS[1]]) == 64


# ── Devices and sockets ─────────────────────────────────────────────────────────────────────────────────


def test_a_device_that_is_not_read_fills_and_is_named() -> None:
    with twin("native") as engine:
        engine.from_vtep(*encapsulated(IN))
        for _ in range(3000):
            engine.sockets[VTEPS[0]].sendto(encapsulated(IN)[0], (str(OURS), engine.port))
            engine.lane.turn()  # and nobody reads what is written
        drops = engine.drops()
        assert drops[DropReason.DEVICE_FULL] > 0
        ledger = engine.statistics().ledger
        assert ledger.delivered + drops[DropReason.DEVICE_FULL] == ledger.received


def test_super_datagrams_of_nonsense_are_each_accounted_for() -> None:
    """A member sends the longest datagrams there are, each a VXLAN header before random octets or none."""
    random, datagrams = Random(7), 300
    with twin("native") as engine:
        bind(engine)
        for number in range(datagrams):
            octets = random.randbytes(65_000)
            datagram = encapsulated(OUT[:34] + octets if number % 2 else octets)[0] if number % 3 else octets
            engine.from_vtep(datagram[:65_507])
        statistics = engine.statistics()
        assert statistics.ledger.received == datagrams
        assert statistics.ledger.held <= 64
        assert engine.device.name == "weft0"
        engine.from_device(OUT)  # it carries as before
        assert engine.arrived[VTEPS[0]][-1][1].endswith(OUT)


def test_a_question_that_comes_between_questions_and_notices_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with twin("native") as engine:
        bind(engine)
        engine.from_device(OUT)
        engine.device.host.send(bytes(10) + OUT[:12] + tcp4(bytes(1500))[12:])  # too long: there is a notice
        engine.lane.turn()
        with monkeypatch.context() as patch:
            patch.setattr(engine.datapath, "_lanes", Interrupted(engine.lane, engine.device))
            engine.reactor.step()
        engine.settle()
        assert engine.statistics().ledger.held == 0
        assert engine.drops()[DropReason.MTU_EXCEEDED] == 1


class Interrupted:
    """A lane whose worker finds a frame of a new flow just before its notices are taken."""

    def __init__(self, lane: Any, device: PairDevice) -> None:
        self._lane = lane
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    def notices(self) -> Any:
        self._device.host.send(bytes(10) + MAC_A + MAC_B + OUT[12:])
        self._lane.turn()
        return self._lane.notices()


def test_questions_beyond_a_turns_time_are_answered_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nativedatapath, "UPCALL_SECONDS", 0.0)  # over with the first answer
    with twin("native") as engine:
        bind(engine)
        for number in range(5):
            engine.device.host.send(bytes(10) + MAC_B + mac(number) + OUT[12:])
        while engine.lane.turn():
            pass
        engine.reactor.step()
        assert (engine.statistics().upcalls, engine.statistics().ledger.held) == (1, 4)
        while engine.reactor.step():
            pass
        assert (engine.statistics().upcalls, engine.statistics().ledger.sent) == (5, 5)


@pytest.mark.parametrize("kind", ["python", "native"])
def test_after_a_decision_that_failed_the_others_are_asked_for(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in one decision costs the frames it is about and no others."""
    failing, decide = [RuntimeError("a bug")], Bridge.egress

    def egress(bridge: Bridge, octets: bytes, *, now: float) -> Decision:
        if failing:
            raise failing.pop()
        return decide(bridge, octets, now=now)

    monkeypatch.setattr(Bridge, "egress", egress)
    with twin(kind) as engine:
        bind(engine)
        for number in range(3):
            engine.device.host.send(bytes(10) + MAC_B + mac(number) + OUT[12:])
        while engine.lane is not None and engine.lane.turn():
            pass
        with pytest.raises(RuntimeError, match="a bug"):
            engine.settle()
        engine.settle()
        assert engine.statistics().ledger.sent == 2
        engine.datapath.expire(now=time.monotonic() + 2.0)
        assert engine.drops() == {DropReason.UPCALL_TIMEOUT: 1}


def test_a_notice_that_failed_leaves_the_others_for_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []

    def too_big(_: object, __: object, frame: bytes, **___: object) -> None:
        heard.append(frame)
        if len(heard) == 1:
            raise RuntimeError("a bug")

    monkeypatch.setattr(nativedatapath.NativeDatapath, "_too_big", too_big)
    with twin("native") as engine:
        bind(engine)
        engine.from_device(OUT)
        long = [tcp4(bytes([number]) * 1500) for number in range(2)]
        for octets in long:
            engine.device.host.send(bytes(10) + octets)
        while engine.lane.turn():
            pass
        with pytest.raises(RuntimeError, match="a bug"):
            engine.settle()
        engine.settle()
        assert heard == long


def test_another_device_takes_over_with_the_flows() -> None:
    with twin("native") as engine:
        bind(engine)
        engine.from_device(OUT)
        upcalls = engine.statistics().upcalls
        new = PairDevice("weft1")
        engine.datapath.replace_device(NETWORK, new, 1450)
        engine.device.close()
        engine.device = new
        engine.from_device(OUT)
        assert (engine.statistics().ledger.sent, engine.statistics().upcalls) == (2, upcalls)


def test_a_device_that_is_gone_is_listened_to_no_more() -> None:
    with twin("native") as engine:
        fd = engine.device.fileno()
        engine.device.host.close()  # the pair's other end: reads say end of file, which is an empty frame
        engine.device._own.close()
        assert not engine.lane.turn()
        assert fd not in engine.reactor._readers


def test_a_worker_that_turns_at_any_moment_of_a_start_takes_no_member_for_a_stranger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with twin("native") as engine, closing(PairDevice("weft1")) as device:
        other, port = NetworkId("other"), free_port()
        engine.tables.add_network(other)
        decider = Bridge(BridgePolicy(other, device.mac), engine.tables)
        known = Vtep(VTEPS[0], engine.vtep_port(VTEPS[0]))
        engine.apply(VtepReplace(other, known), FloodReplace(other, VTEPS[:1]))
        [datagram] = encapsulated(IN, vni=43)

        def arrive() -> None:
            engine.sockets[VTEPS[0]].sendto(datagram, (str(OURS), port))

        with monkeypatch.context() as patch:
            patch.setattr(engine.datapath, "_lanes", Hasty(engine.lane, arrive))
            engine.datapath.attach(Attachment(other, Vni(43), port, device, decider, overlay_mtu=1450))
        engine.settle()
        statistics = engine.statistics()
        assert not any(statistics.drops.values())
        assert statistics.ledger.received > 0


class Hasty:
    """A lane whose worker finds a datagram, and its turn, before and after everything that is asked of it."""

    def __init__(self, lane: Any, arrive: Callable[[], None]) -> None:
        self._lane = lane
        self._arrive = arrive

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._lane, name)

        def between_turns(*arguments: object) -> object:
            self._turn()
            answer = asked(*arguments)
            self._turn()
            return answer

        return between_turns

    def _turn(self) -> None:
        self._arrive()
        while self._lane.turn():
            pass


def test_a_port_that_is_taken_is_told_and_leaves_nothing_behind() -> None:
    with twin("native") as engine:
        other = NetworkId("other")
        engine.tables.add_network(other)
        device = PairDevice("weft1")
        decider = Bridge(BridgePolicy(other, device.mac), engine.tables)
        taken = engine.vtep_port(VTEPS[0])
        engine.sockets[VTEPS[0]].close()
        with Blocker(taken), pytest.raises(DeviceError) as caught:
            engine.datapath.attach(Attachment(other, Vni(43), taken, device, decider, overlay_mtu=1450))
        assert caught.value.errno == errno.EADDRINUSE
        assert set(engine.statistics().flows) == {NETWORK}
        device.close()


class Blocker:
    """Has a port of 127.0.0.1 for a while."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((str(OURS), port))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_what_the_kernel_lost_before_us_has_a_name() -> None:
    with twin("native") as engine:
        engine.device.lost = 5
        engine.datapath.expire(now=time.monotonic())
        engine.datapath.expire(now=time.monotonic())
        assert engine.drops() == {DropReason.DEVICE_OVERRUN: 5}


def test_the_next_send_tells_of_the_refusals_so_far_and_is_sent_all_the_same() -> None:
    with twin("native") as engine:
        bind(engine)
        watch = select.poll()
        for sender in engine.underlay.senders:
            watch.register(sender, 0)
        engine.sockets.pop(VTEPS[0]).close()  # loopback answers that the port is closed
        engine.from_device(udp4(b"first"))
        assert watch.poll(5000)
        assert (engine.drops(), engine.statistics().ledger.sent) == ({}, 1)
        engine.from_device(udp4(b"second"))
        assert engine.drops()[DropReason.UNDERLAY_ERROR] >= 1, "without a second having passed"

        def are_both_counted() -> bool:
            engine.datapath.expire(now=time.monotonic())
            return engine.drops() == {DropReason.UNDERLAY_ERROR: 2}

        eventually(engine, "what no send came after is counted, too", are_both_counted)


def test_segmentation_lowered_elsewhere_is_followed() -> None:
    with twin("native") as engine:
        bind(engine)
        burst = Burst(octets=6000)
        engine.underlay.ladder.lower(Feature.UDP_GSO, "a test", now=time.monotonic())
        engine.datapath.expire(now=time.monotonic())
        engine.from_device(burst.whole, header=burst.header)
        assert [octets[8:] for _, octets in engine.arrived[VTEPS[0]]] == burst.segments


# ── Several workers ─────────────────────────────────────────────────────────────────────────────────────


def two_queues(engine: Twin) -> PairDevice:
    """Has the engine's two workers read a queue each; the other queue's device, for its other end."""
    second = PairDevice("weft0")
    device = Queues(engine.device, second)
    engine.datapath.replace_device(NETWORK, device, 1450)
    return second


class Queues(PairDevice):
    """A device of two queues, made of two of one."""

    def __init__(self, first: PairDevice, second: PairDevice) -> None:
        self.__dict__.update(first.__dict__)
        self._second = second

    @property
    def queues(self) -> tuple[int, ...]:
        return (self.fileno(), self._second.fileno())


def from_many_ports(engine: Twin, frame: bytes) -> None:
    """A VTEP sends the frame 16 times, from a port of its own each: every worker's socket gets some."""
    for _ in range(16):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as vtep:
            vtep.bind((str(VTEPS[0]), 0))
            vtep.sendto(encapsulated(frame)[0], (str(OURS), engine.port))
            engine.settle()


def test_workers_decide_for_themselves_and_are_told_as_one() -> None:
    with twin("native", workers=2) as engine, closing(two_queues(engine)) as second:
        bind(engine)
        engine.from_device(OUT, OUT)
        for _ in range(3):
            second.host.send(bytes(10) + OUT)
        engine.settle()
        statistics = engine.statistics()
        assert (statistics.ledger.sent, statistics.upcalls) == (5, 2)
        assert sorted(flow[4:] for flow in engine.flows()) == [(2, 2 * len(OUT)), (3, 3 * len(OUT))]
        assert [each.sent_frames for each in statistics.vteps if each.vtep == VTEPS[0]] == [5]
        engine.apply(FdbRemove(NETWORK, MAC_B))  # forgotten by both
        assert engine.flows() == set()
        engine.from_device(OUT)
        second.host.send(bytes(10) + OUT)
        engine.settle()
        assert engine.statistics().ledger.generated == 2, "flooded to two"
        assert engine.statistics().upcalls == 4


def test_what_no_queue_is_there_for_is_written_to_the_first() -> None:
    with twin("native", workers=4) as engine:
        from_many_ports(engine, IN)
        assert [frame for _, frame in engine.written] == [IN] * 16
        assert engine.statistics().upcalls > 1, "more than one worker had to ask"


def test_a_limit_heard_on_one_queue_holds_for_what_every_worker_writes() -> None:
    with twin("native", workers=4) as engine:
        bind(engine, MAC_B)
        engine.from_device(tcp4(flags="S", options=[("MSS", 500)]))
        whole = MAC_A + MAC_B + Burst(octets=6000).whole[12:]
        from_many_ports(engine, whole)
        assert len(engine.written) == 16
        assert {int.from_bytes(header[4:6], sys.byteorder) for header, _ in engine.written} == {500}


def test_observers_see_what_every_worker_does_and_losses_are_told_to_any() -> None:
    with twin("native", workers=2) as engine, closing(two_queues(engine)) as second:
        watcher = Watcher()
        engine.datapath.watch(watcher)
        engine.from_device(OUT)
        second.host.send(bytes(10) + OUT)
        engine.settle()
        assert sum(point is Point.DEVICE_READ for point, *_ in watcher.seen) == 2
        engine.datapath.unwatch(watcher)
        second.host.send(bytes(10) + OUT)
        engine.settle()
        assert engine.lane.shown(1) == []
        before = engine.statistics().ledger
        engine.lane.lost_after(
            nativedatapath.NUMBERS[DropReason.UNDERLAY_ERROR], 0, None, before.sent
        )  # more than each sent
        after = engine.statistics().ledger
        assert (after.sent, after.dropped, after.balances) == (0, before.dropped + before.sent, True)


# ── Seeing ──────────────────────────────────────────────────────────────────────────────────────────────


class Watcher:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[Point, NetworkId | None, bytes, object]] = []

    def observe(self, point: Point, network: NetworkId | None, frame: Buffer, verdict: object) -> None:
        self.seen.append((point, network, bytes(frame), verdict))


def test_an_observer_sees_each_frame_where_it_passes() -> None:
    with twin("native") as engine:
        bind(engine)
        watcher = Watcher()
        engine.datapath.watch(watcher)
        engine.from_device(OUT)
        engine.from_vtep(*encapsulated(IN))
        engine.from_vtep(*encapsulated(IN), sender=STRANGER)
        engine.datapath.unwatch(watcher)
        engine.from_device(OUT)
        drop = Drop(DropReason.UNKNOWN_VTEP)
        assert watcher.seen == [
            (Point.DEVICE_READ, NETWORK, OUT, None),
            (Point.UNDERLAY_SEND, NETWORK, OUT, None),
            (Point.UNDERLAY_RECEIVE, NETWORK, IN, None),
            (Point.DEVICE_WRITE, NETWORK, IN, None),
            (Point.UNDERLAY_RECEIVE, NETWORK, IN, None),
            (Point.DROP, NETWORK, IN, drop),
        ]


def test_what_observers_are_too_slow_for_goes_unseen_and_is_carried() -> None:
    with twin("native") as engine:
        bind(engine)
        engine.from_device(OUT)
        watcher = Watcher()
        engine.datapath.watch(watcher)
        burst = Burst(octets=60_000, size=1300)
        for _ in range(200):  # 12 MB, twice each: more than is kept for them
            engine.device.host.send(burst.header + burst.whole)
            engine.lane.turn()
        assert engine.lane.unseen() > 0
        assert engine.statistics().ledger.sent == 1 + 200 * len(burst.segments)
        engine.settle()
        assert 0 < len(watcher.seen) < 200 * (1 + len(burst.segments))


def test_short_datagrams_that_observers_are_too_slow_for_are_bounded_too() -> None:
    with twin("native") as engine:
        watcher = Watcher()
        engine.datapath.watch(watcher)
        for _ in range(4000):
            engine.arrive(*[bytes(1)] * 60, sender=STRANGER)
            engine.lane.turn()
        assert engine.lane.unseen() > 0
        engine.settle()


def test_observers_leave_the_loop_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nativedatapath, "SHOWING_SECONDS", 0.0)  # over with the first frames
    monkeypatch.setattr(nativedatapath, "SHOWN_AT_ONCE", 2)
    with twin("native") as engine:
        watcher = Watcher()
        engine.datapath.watch(watcher)
        frames = [IN[:-1] + bytes([number]) for number in range(5)]
        for octets in frames:
            engine.arrive(*encapsulated(octets), sender=STRANGER)
        while engine.lane.turn():
            pass
        engine.reactor.step()
        assert len(watcher.seen) == 2
        engine.settle()
        assert [frame for point, _, frame, _ in watcher.seen if point is Point.DROP] == frames


def test_flows_and_activity_tell_what_was_carried() -> None:
    with twin("native") as engine:
        bind(engine)
        engine.from_device(OUT, OUT)
        began = time.monotonic()
        engine.from_vtep(*encapsulated(IN))
        flows = {flow.verdict: flow for flow in engine.datapath.flows() if flow.vtep is None}
        assert flows[Encapsulate(VTEPS[0])].frames == 2
        (activity,) = engine.datapath.activity(since=began)
        assert activity == Activity(NETWORK, MAC_B, VTEPS[0], activity.used_at)
        assert began <= activity.used_at <= time.monotonic()
        assert list(engine.datapath.activity(since=time.monotonic())) == []


def test_what_is_unbound_is_forgotten_before_apply_returns() -> None:
    with twin("native") as engine:
        bind(engine)
        engine.from_device(OUT)
        assert engine.statistics().flows == {NETWORK: 1}
        engine.apply(FdbRemove(NETWORK, MAC_B))
        assert engine.statistics().flows == {NETWORK: 0}


def test_a_network_detached_keeps_its_counts() -> None:
    with twin("native") as engine:
        bind(engine)
        engine.from_device(OUT, arp_request())
        engine.datapath.detach(NETWORK)
        engine.device.host.send(bytes(10) + OUT)
        assert not engine.lane.turn()
        assert engine.statistics().ledger.sent == 3  # one, and the question to both
        assert engine.statistics().flows == {}


# ── Its end ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_panic_is_told_once_and_everything_can_still_be_closed() -> None:
    engine = Twin("native", starts=True)
    try:
        bind(engine)
        engine.lane.break_on_purpose()
        eventually(engine, "it is told", lambda: bool(engine.broke))
        (error,) = engine.broke
        assert str(error) == "native engine: it broke: broken on purpose"
        # What it is told now has no effect, and no traceback.
        engine.know(VTEPS[0])
        engine.device.host.send(bytes(10) + OUT)
        engine.datapath.expire(now=time.monotonic())
        assert engine.statistics().ledger.balances
        engine.datapath.close()
        engine.datapath.close()
    finally:
        engine.close()


def test_one_worker_that_breaks_stops_all_of_them() -> None:
    with twin("native", workers=3, starts=True) as engine:
        eventually(engine, "they run", lambda: threads() == 3)
        engine.lane.break_on_purpose()
        eventually(engine, "it is told", lambda: bool(engine.broke))
        assert "broken on purpose" in str(engine.broke[0])
        eventually(engine, "none runs", lambda: threads() == 0)
        bind(engine)  # changes still reach what is whole, and nobody minds
        assert engine.statistics().ledger.balances


def threads() -> int:
    """How many workers run."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            count += (task / "comm").read_text() == "weft-lane\n"
    return count


def test_closing_ends_the_worker() -> None:
    engine = Twin("native", starts=True)
    eventually(engine, "a thread names itself", lambda: "weft-lane" in thread_names())
    engine.close()
    assert "weft-lane" not in thread_names()


def thread_names() -> set[str]:
    """The kernel's names of this process's threads."""
    from pathlib import Path  # noqa: PLC0415

    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


def test_udp_to_an_address_of_another_family_is_an_underlay_error() -> None:
    with twin("native") as engine:
        v6 = ip_address("2001:db8::2")
        choose = lambda address: engine.underlay if address.version == 4 else None  # noqa: E731
        setattr(engine.datapath, "_choose_underlay", choose)  # noqa: B010  (a Datapath has none)
        engine.sockets[v6], engine.arrived[v6] = engine.sockets[VTEPS[0]], []
        engine.know(v6)
        engine.apply(FdbReplace(NETWORK, MAC_B, v6, Origin.CONTROL, 0.0))
        engine.from_device(udp4(b"nowhere"))
        del engine.sockets[v6]
        assert engine.drops() == {DropReason.UNDERLAY_ERROR: 1}
