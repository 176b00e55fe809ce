"""UDP from one place to another: flooded or paced, counted by the program that receives.

    python -m bench.traffic.udp receive ADDRESS PORT
    python -m bench.traffic.udp send ADDRESS[,ADDRESS…] PORT --length 64 --seconds 2 [--rate 100000]

Several addresses are sent to in turn; only paced senders know more than one.

The receiver keeps the system's default receive buffer, as the programs of an operator do: what falls there
because a burst came faster than the program got a core is a loss to whoever uses the overlay.  It counts
from the first datagram until none came for a while.

The paced sender sleeps between ticks instead of spinning, for on a machine with two cores a spinning sender
takes from the forwarder what it is to be measured with.  So a tick's datagrams leave in one burst.  When the
scheduler kept it waiting, it catches up a little and lets the rest go: it would otherwise send a burst that
nobody asked for, and the loss would be laid at the forwarder's door.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from bench.traffic.cue import await_cue, hold_cue, say_ready, say_result

# Ours
QUIET_S = 0.3  # nothing for so long: the sender is done and the queues are empty
TICK_S = 0.0005  # of the paced sender; at 100 000 datagrams/s, 50 leave together
CATCH_UP_TICKS = 4
FLOOD_BATCH = 64  # datagrams between two looks at the clock
RECEIVE_OCTETS = 65535


class Stop(Exception):  # noqa: N818 - the driver's word, not an error
    """SIGTERM: report what there is."""


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="bench.traffic.udp")
    parser.add_argument("role", choices=("send", "receive"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.0, help="datagrams/s; 0 floods")
    chosen = parser.parse_args()
    hold_cue()
    family = socket.AF_INET6 if ":" in chosen.address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        endpoints = [
            stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in chosen.address.split(",")
        ]
        if chosen.role == "receive":
            endpoints[0].bind((chosen.address, chosen.port))
            receive(endpoints[0])
            return
        for endpoint, address in zip(endpoints, chosen.address.split(","), strict=True):
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            endpoint.connect((address, chosen.port))
        await_cue()
        if chosen.rate:
            sends = itertools.cycle([endpoint.send for endpoint in endpoints])
            sent, seconds = send_paced(sends, bytes(chosen.length), chosen.rate, chosen.seconds)
        else:
            sent, seconds = flood(endpoints[0], bytes(chosen.length), chosen.seconds)
    say_result({"sent": sent, "seconds": seconds})


def receive(endpoint: socket.socket) -> None:
    """Counts until nothing came for QUIET_S, or SIGTERM; says how many datagrams, octets and seconds."""
    signal.signal(signal.SIGTERM, _stop)
    buffer = bytearray(RECEIVE_OCTETS)
    receive_into = endpoint.recv_into  # HOT PATH: the receiver must not be what is measured
    count = length = 0
    began = ended = 0.0
    try:
        say_ready()
        length = receive_into(buffer)
        began = time.perf_counter()
        count = 1
        # A time-out kept by the kernel: Python's own would add a poll() to every datagram.
        quiet = struct.pack("@ll", 0, int(QUIET_S * 1e6))
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, quiet)
        while True:
            receive_into(buffer)
            count += 1
    except BlockingIOError:
        ended = time.perf_counter() - QUIET_S
    except Stop:
        ended = time.perf_counter() if count else began
    say_result({"received": count, "octets": count * length, "seconds": max(ended - began, 0.0)})


def flood(endpoint: socket.socket, payload: bytes, seconds: float) -> tuple[int, float]:
    """As fast as one process can: how many datagrams, in how many seconds."""
    send = endpoint.send
    began = now = time.perf_counter()
    sent = 0
    while now - began < seconds:
        for _ in range(FLOOD_BATCH):
            send(payload)
        sent += FLOOD_BATCH
        now = time.perf_counter()
    return sent, now - began


def send_paced(
    sends: Iterator[Callable[[bytes], int]], payload: bytes, rate: float, seconds: float
) -> tuple[int, float]:
    """At `rate` datagrams a second, or fewer where no core was to be had: how many, in how many seconds."""
    most_at_once = max(1, round(rate * TICK_S * CATCH_UP_TICKS))
    began = now = time.perf_counter()
    sent = forgiven = 0
    while now - began < seconds:
        due = int((now - began) * rate) - sent - forgiven
        if due > most_at_once:
            forgiven += due - most_at_once
            due = most_at_once
        for send in itertools.islice(sends, due):
            send(payload)
        sent += due
        time.sleep(TICK_S)
        now = time.perf_counter()
    return sent, now - began


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Stop


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
