"""Connections that live for one exchange: connect, ask, be answered, close; then the next.

    python -m bench.traffic.churn answer ADDRESS PORT
    python -m bench.traffic.churn ask ADDRESS PORT --seconds 2

Every connection has a source port of its own, so to whoever remembers by ports each one is new.  The
answering side closes first: the ports of the asking one, some 28 000, are free again at once.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import time

from bench.traffic.cue import await_cue, hold_cue, say_ready, say_result

# Ours
REQUEST_OCTETS = 64
PATIENCE_S = 1.5  # longer than the first repetition of a lost SYN (RFC 6298 section 2)
BACKLOG = 128


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="bench.traffic.churn")
    parser.add_argument("role", choices=("answer", "ask"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--seconds", type=float, default=1.0)
    chosen = parser.parse_args()
    hold_cue()
    target = (chosen.address, chosen.port)
    family = socket.AF_INET6 if ":" in chosen.address else socket.AF_INET
    if chosen.role == "answer":
        with socket.create_server(target, family=family, backlog=BACKLOG) as listener:
            say_ready()
            answer(listener)
    await_cue()
    failed, times_ns = ask(target, chosen.seconds)
    say_result({"failed": failed, "times_ns": times_ns})


def answer(listener: socket.socket) -> None:
    """One connection after the other, until it is killed."""
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE_S)
            connection.sendall(connection.recv(REQUEST_OCTETS))


def ask(target: tuple[str, int], seconds: float) -> tuple[int, list[int]]:
    """How many connections failed, and how long each of the others lived, in nanoseconds."""
    request = bytes(REQUEST_OCTETS)
    times: list[int] = []
    failed = 0
    ends_at = time.perf_counter() + seconds
    while time.perf_counter() < ends_at:
        began_ns = time.perf_counter_ns()
        try:
            exchange(target, request)
            times.append(time.perf_counter_ns() - began_ns)
        except OSError:
            failed += 1
    return failed, times


def exchange(target: tuple[str, int], request: bytes) -> None:
    """One connection, from its first segment to its last.

    Raises:
        OSError: It was not answered in time.
    """
    with socket.create_connection(target, timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        answered = 0
        while octets := len(connection.recv(REQUEST_OCTETS)):
            answered += octets
        if answered != len(request):
            raise ConnectionError(f"expected {len(request)} octets, found {answered}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
