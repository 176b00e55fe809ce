"""Traffic programs, over the loopback: what is sent is counted, paced, answered and timed."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, cast

import pytest

from bench.lab.commands import LabError
from bench.lab.namespaces import Place
from bench.traffic import churn, echo, udp
from bench.traffic.echo import first_answer
from bench.traffic.frames import announcement, frame_of_pair
from bench.traffic.tool import Tool
from bench.traffic.udp import CATCH_UP_TICKS, TICK_S
from bench.traffic.wake import wake_us

LOOPBACK = "127.0.0.1"


class Here:
    """A place that is no namespace: this process's own."""

    name = "here"

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


HERE = cast("Place", Here())


def send(port: int, *options: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the sender and the receiver say."""
    with (
        Tool(HERE, "udp", "receive", LOOPBACK, port) as receiver,
        Tool(HERE, "udp", "send", LOOPBACK, port, *options) as sender,
    ):
        sender.begin()
        sent = sender.result(within=20)
        return sent, receiver.result(within=20)


def free_port() -> int:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def test_a_paced_sender_sends_no_more_than_asked_for_and_all_arrives() -> None:
    sent, received = send(free_port(), "--length", 100, "--seconds", 0.5, "--rate", 2000)
    assert 0 < sent["sent"] <= 2000 * sent["seconds"] + 1
    assert received["received"] == sent["sent"]
    assert received["octets"] == 100 * sent["sent"]
    assert received["seconds"] > 0


class Clock:
    """Time that passes only when somebody sleeps; the fifth sleep is a long one."""

    def __init__(self, stall_s: float) -> None:
        self.now = 0.0
        self._sleeps = 0
        self._stall_s = stall_s

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self._sleeps += 1
        self.now += self._stall_s if self._sleeps == 5 else seconds


class Sink:
    """An endpoint that notes when each datagram was sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.bursts: dict[float, int] = {}

    def send(self, _payload: bytes) -> int:
        self.bursts[self._clock.now] = self.bursts.get(self._clock.now, 0) + 1
        return 0


@pytest.mark.parametrize(("stall_s", "most_at_once"), [(TICK_S, 50), (0.5, 50 * CATCH_UP_TICKS)])
def test_pacing_is_exact_and_a_stall_is_not_made_up_for_in_one_burst(
    stall_s: float, most_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(stall_s)
    monkeypatch.setattr(udp, "time", clock)
    sink = Sink(clock)
    sends = itertools.repeat(sink.send)
    sent, seconds = udp.send_paced(sends, b"x", rate=100_000.0, seconds=1.0)
    lost_s = stall_s - CATCH_UP_TICKS * TICK_S if stall_s > TICK_S else 0.0
    assert sum(sink.bursts.values()) == sent
    assert sent == pytest.approx(100_000 * (1.0 - lost_s), abs=2 * 50)
    assert most_at_once <= max(sink.bursts.values()) <= most_at_once + 1
    assert seconds == pytest.approx(1.0, abs=2 * TICK_S)


def test_an_answer_that_comes_late_is_not_taken_for_the_next() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.settimeout(0.01)
        theirs.send(b"late")
        theirs.send(b"asked")
        assert echo._is_answered(ours, b"asked", bytearray(64))
        theirs.send(b"late")
        assert not echo._is_answered(ours, b"asked", bytearray(64))


def test_a_flood_sends_far_more() -> None:
    sent, received = send(free_port(), "--length", 64, "--seconds", 0.3)
    assert sent["sent"] > 2000 * sent["seconds"]
    assert 0 < received["received"] <= sent["sent"]


def test_a_receiver_nobody_sends_to_reports_nothing_when_asked_to_end() -> None:
    with Tool(HERE, "udp", "receive", LOOPBACK, free_port()) as receiver:
        assert receiver.result(within=0.1) == {"received": 0, "octets": 0, "seconds": 0}


def test_every_request_is_answered_and_timed() -> None:
    port = free_port()
    with (
        Tool(HERE, "echo", "answer", LOOPBACK, port),
        Tool(HERE, "echo", "ask", LOOPBACK, port, "--rate", 200, "--seconds", 0.5) as asker,
    ):
        asker.begin()
        said = asker.result(within=20)
    assert said["sent"] == 100
    assert len(said["round_trips_ns"]) == 100
    assert all(time_ns > 0 for time_ns in said["round_trips_ns"])


def test_the_first_answer_is_awaited_and_no_answer_is_none() -> None:
    with Tool(HERE, "echo", "answer", LOOPBACK, port := free_port()):
        assert first_answer(socket.AF_INET, (LOOPBACK, port), within=20) is not None
    assert first_answer(socket.AF_INET, (LOOPBACK, free_port()), within=0.05) is None


def test_a_program_that_cannot_begin_is_quoted() -> None:
    with (
        pytest.raises(LabError, match=r"(?s)udp receive 192\.0\.2\.1 .* in here: .*OSError"),
        Tool(HERE, "udp", "receive", "192.0.2.1", free_port()),
    ):
        pass


def test_a_program_that_is_gone_left_no_result() -> None:
    with (
        Tool(HERE, "udp", "send", LOOPBACK, free_port()) as sender,
        pytest.raises(LabError, match="expected a result, found: nothing"),
    ):
        sender.result(within=0.1)  # never told to begin, so it is asked to end


def test_pairs_have_macs_of_their_own_and_destinations_tell_one_station() -> None:
    station = bytes.fromhex("020000000001")
    frames = [frame_of_pair(number) for number in range(1000)]
    assert len({frame[:12] for frame in frames}) == 1000
    for number, frame in itertools.islice(enumerate(frames), 0, None, 100):
        there = frame[:6]
        assert announcement(station, number) == station + there + frame[12:]
        assert not there[0] & 1  # unicast
        assert there[0] & 2  # locally administered (IEEE 802 section 8.4.2)
        assert (frame[12:14], len(frame)) == (b"\x88\xb5", 78)


def test_waking_a_process_on_the_same_core_takes_some_time() -> None:
    core = min(before := os.sched_getaffinity(0))
    try:
        assert 0 < wake_us(core, core) < 1e6
    finally:
        os.sched_setaffinity(0, before)


def test_several_addresses_are_sent_to_in_turn() -> None:
    port = free_port()
    places = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    with ExitStack() as stack:
        receivers = [stack.enter_context(Tool(HERE, "udp", "receive", each, port)) for each in places]
        options = ["--seconds", 0.3, "--rate", 1000]
        sender = stack.enter_context(Tool(HERE, "udp", "send", ",".join(places), port, *options))
        sender.begin()
        sent = sender.result(within=20)["sent"]
        counts = [receiver.result(within=20)["received"] for receiver in receivers]
    assert sum(counts) == sent > 0
    assert max(counts) - min(counts) <= 1


def test_connections_come_and_go_one_after_another() -> None:
    port = free_port()
    with (
        Tool(HERE, "churn", "answer", LOOPBACK, port),
        Tool(HERE, "churn", "ask", LOOPBACK, port, "--seconds", 0.3) as asker,
    ):
        asker.begin()
        said = asker.result(within=20)
    assert said["failed"] == 0
    assert len(said["times_ns"]) > 10
    assert 0 < max(said["times_ns"]) < 2e9


def accept_and_close(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_a_connection_that_is_refused_or_cut_short_has_failed() -> None:
    failed, times = churn.ask((LOOPBACK, free_port()), 0.05)
    assert failed > 0
    assert times == []
    with socket.create_server((LOOPBACK, 0)) as listener:
        thread = threading.Thread(target=accept_and_close, args=(listener,))
        thread.start()
        with pytest.raises(ConnectionError):
            churn.exchange(listener.getsockname(), bytes(churn.REQUEST_OCTETS))
        thread.join()
