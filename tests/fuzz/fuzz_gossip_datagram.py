"""Datagrams and streams at every door of gossip: a value or WireError, and a core that lives on.

python tests/fuzz/fuzz_gossip_datagram.py -max_total_time=20
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "control.membership"]):
    from control.membership.config import GossipConfig
    from control.membership.keyquery import KeyQuery, KeyStep, perform_untrusted
    from control.membership.keys import parse_key_untrusted, parse_keyring_untrusted
    from control.membership.member import Endpoint
    from control.membership.pack import unpack_untrusted
    from control.membership.secure import Envelope, Keyring
    from control.membership.serf import Serf
    from control.membership.serfwire import parse_serf_untrusted, parse_state_untrusted
    from control.membership.snapshot import parse_snapshot_untrusted
    from control.membership.stream import StreamReader, parse_stream_untrusted
    from control.membership.tags import parse_tags_untrusted
    from control.membership.wire import parse_untrusted, unwrap_untrusted
    from overlay.errors import WireError

US, STRANGER = Endpoint("192.0.2.1", 7946), Endpoint("203.0.113.9", 999)
KEY = bytes(32)


def envelope(*keys: bytes, label: str = "") -> Envelope:
    return Envelope(Keyring(keys), label, nonce=bytes)


def open_untrusted(octets: bytes) -> bytes:
    sealed = envelope(KEY, label="p")
    return sealed.open_untrusted(sealed.strip_label_untrusted(octets))


DOORS: list[Callable[[bytes], object]] = [
    unwrap_untrusted,
    parse_untrusted,
    parse_stream_untrusted,
    parse_tags_untrusted,
    parse_serf_untrusted,
    parse_state_untrusted,
    open_untrusted,
    lambda octets: unpack_untrusted(octets, "fuzz"),
    lambda octets: StreamReader(envelope()).receive_untrusted(octets),
    lambda octets: StreamReader(envelope(KEY)).receive_untrusted(octets),
    lambda octets: perform_untrusted(KeyStep.INSTALL, octets, Keyring([KEY])),
    lambda octets: KeyQuery(1, 1, 3).receive_untrusted("m1", octets),
    lambda octets: parse_key_untrusted(octets.decode("latin-1")),
    lambda octets: parse_keyring_untrusted(octets.decode("latin-1")),
    lambda octets: parse_snapshot_untrusted(octets.decode("latin-1")),
]


def one_input(octets: bytes) -> None:
    for door in DOORS:
        with suppress(WireError):
            door(octets)
    core = Serf(GossipConfig("us", US, {"weft_id": "us"}), rng=Random(1), envelope=envelope(), now=0.0)
    core.receive_datagram(octets, STRANGER, now=1.0)
    answered = sum(len(datagram.data) for datagram in core.datagrams_to_send(now=1.0))
    if answered > 3 * len(octets):
        raise AssertionError(f"{answered} octets for {len(octets)}: {octets.hex()}")
    number = core.accept_stream(STRANGER, now=1.0)
    if number is not None:
        core.receive_stream(number, octets, now=1.0)
    core.handle_timer(now=1.5)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
