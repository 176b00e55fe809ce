"""Ethernet frames between many MAC pairs, sent on a device as they are.

    python -m bench.traffic.frames DEVICE --pairs 10000 --seconds 2 [--rate 2000] [--announce-to MAC]

Pair number i goes from 02:AA::i to 02:BB::i.  With --announce-to, each destination sends to that one station,
which everybody knows: that is how the far side learns where the destinations are before they are sent to,
without a frame of its own that goes to every VTEP.  The frames are of a local experimental type, which no
stack answers and no offload merges: the far device's own counter says exactly how many arrived.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import time
from functools import partial

from bench.traffic.cue import await_cue, hold_cue, say_result

# From the specification
LOCAL_EXPERIMENTAL = 0x88B5  # IEEE 802 section 9.2.3, "Local Experimental Ethertype 1"

# Ours
SOURCE_PREFIX = bytes.fromhex("02aa")
DESTINATION_PREFIX = bytes.fromhex("02bb")
PAYLOAD_OCTETS = 64
BATCH = 64
TICK_S = 0.001


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="bench.traffic.frames")
    parser.add_argument("device")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.0, help="frames/s; 0 floods")
    parser.add_argument(
        "--announce-to", type=_octets, metavar="MAC", help="from the destinations to that one"
    )
    chosen = parser.parse_args()
    hold_cue()
    build = frame_of_pair if chosen.announce_to is None else partial(announcement, chosen.announce_to)
    frames = [build(number) for number in range(chosen.pairs)]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as endpoint:  # protocol 0: receives nothing
        endpoint.bind((chosen.device, 0))
        await_cue()
        sent, seconds = send_round(endpoint, frames, chosen.seconds, chosen.rate)
    say_result({"sent": sent, "seconds": seconds})


def frame_of_pair(number: int) -> bytes:
    """From its source to its destination."""
    return _frame(_mac(DESTINATION_PREFIX, number), _mac(SOURCE_PREFIX, number))


def announcement(station: bytes, number: int) -> bytes:
    """From the pair's destination to a station."""
    return _frame(station, _mac(DESTINATION_PREFIX, number))


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _mac(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(4, "big")


def _frame(destination: bytes, source: bytes) -> bytes:
    return destination + source + LOCAL_EXPERIMENTAL.to_bytes(2, "big") + bytes(PAYLOAD_OCTETS)


def send_round(
    endpoint: socket.socket, frames: list[bytes], seconds: float, rate: float
) -> tuple[int, float]:
    """Frame after frame, round and round: how many, in how many seconds."""
    following = itertools.cycle(frames).__next__
    began = now = time.perf_counter()
    sent = 0
    while now - began < seconds:
        due = min(int((now - began) * rate) - sent, BATCH) if rate else BATCH
        for _ in range(due):
            with contextlib.suppress(BlockingIOError):
                endpoint.send(following())
        sent += due
        if rate:
            time.sleep(TICK_S)
        now = time.perf_counter()
    return sent, now - began


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
