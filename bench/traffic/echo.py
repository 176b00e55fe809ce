"""Request and response over UDP at a stated rate, each exchange timed; and how long until the first answer.

    python -m bench.traffic.echo answer ADDRESS PORT
    python -m bench.traffic.echo ask ADDRESS PORT --rate 1000 --seconds 2
    python -m bench.traffic.echo first ADDRESS PORT --within 15

One request is under way at a time, and the asker sleeps between two: each one finds everybody asleep, as the
requests of a quiet service do.  What sleeping costs is not part of what is timed, waking up the others is.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import time

from bench.traffic.cue import await_cue, hold_cue, say_ready, say_result

# Ours
PATIENCE_S = 0.25  # for one answer; later ones count as lost
FIRST_PATIENCE_S = 0.02  # asking anew is cheap while somebody is still starting
FIRST_PAUSE_S = 0.005
REQUEST_OCTETS = 64


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="bench.traffic.echo")
    parser.add_argument("role", choices=("answer", "ask", "first"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests/s")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--within", type=float, default=15.0, help="seconds until the first answer")
    chosen = parser.parse_args()
    hold_cue()
    family = socket.AF_INET6 if ":" in chosen.address else socket.AF_INET
    target = (chosen.address, chosen.port)
    if chosen.role == "first":
        await_cue()
        say_result({"answered_at": first_answer(family, target, chosen.within)})
        return
    with socket.socket(family, socket.SOCK_DGRAM) as endpoint:
        if chosen.role == "answer":
            endpoint.bind(target)
            say_ready()
            answer(endpoint)
        endpoint.connect(target)
        await_cue()
        sent, round_trips_ns = ask(endpoint, chosen.rate, chosen.seconds)
    say_result({"sent": sent, "round_trips_ns": round_trips_ns})


def answer(endpoint: socket.socket) -> None:
    """Sends everything back, until it is killed."""
    buffer = bytearray(2048)
    while True:
        length, sender = endpoint.recvfrom_into(buffer)
        endpoint.sendto(memoryview(buffer)[:length], sender)


def ask(endpoint: socket.socket, rate: float, seconds: float) -> tuple[int, list[int]]:
    """How many requests were sent, and the round trips of those that were answered, in nanoseconds."""
    endpoint.settimeout(PATIENCE_S)
    buffer = bytearray(2048)
    round_trips: list[int] = []
    sent = 0
    began = time.perf_counter()
    while (due := sent / rate) < seconds:
        time.sleep(max(0.0, began + due - time.perf_counter()))
        request = sent.to_bytes(8, "big").ljust(REQUEST_OCTETS, b"\0")
        sent += 1
        asked_ns = time.perf_counter_ns()
        endpoint.send(request)
        if _is_answered(endpoint, request, buffer):
            round_trips.append(time.perf_counter_ns() - asked_ns)
    return sent, round_trips


def _is_answered(endpoint: socket.socket, request: bytes, buffer: bytearray) -> bool:
    """Whether this request's own answer comes in time; late ones of others are passed over."""
    try:
        while True:
            length = endpoint.recv_into(buffer)
            if buffer[:length] == request:
                return True
    except TimeoutError:
        return False


def first_answer(family: int, target: tuple[str, int], within: float) -> float | None:
    """Monotonic seconds of the first answer (CLOCK_MONOTONIC is one for all processes); None: there is none.

    A socket for each try: before the device is there, connecting itself fails.
    """
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with socket.socket(family, socket.SOCK_DGRAM) as endpoint:
            endpoint.settimeout(FIRST_PATIENCE_S)
            with contextlib.suppress(OSError):
                endpoint.connect(target)
                endpoint.send(bytes(REQUEST_OCTETS))
                endpoint.recv(2048)
                return time.monotonic()
        time.sleep(FIRST_PAUSE_S)
    return None


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
