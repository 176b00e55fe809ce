"""Datagrams, streams and payloads at the doors of the gossip: a value or a WireError.

python tests/fuzz/fuzz_membership.py -max_total_time=20
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "control"]):
    from control.membership.keyquery import KeyQuery, KeyStep, perform_untrusted
    from control.membership.lzw import decompress_untrusted
    from control.membership.secure import Envelope, Keyring
    from control.membership.serfwire import parse_serf_untrusted, parse_state_untrusted
    from control.membership.stream import StreamReader, parse_stream_untrusted
    from control.membership.tags import parse_tags_untrusted
    from control.membership.wire import parse_untrusted, unwrap_untrusted
    from overlay.errors import WireError

KEY = bytes(range(16))
PLAIN = Envelope(Keyring(), nonce=bytes)
SEALED = Envelope(Keyring([KEY]), "weft", nonce=bytes)
LIMIT = 1 << 16  # octets
DOORS = (
    parse_untrusted,
    parse_serf_untrusted,
    parse_state_untrusted,
    parse_tags_untrusted,
    parse_stream_untrusted,
    PLAIN.open_untrusted,
    SEALED.open_untrusted,
    SEALED.strip_label_untrusted,
)


def one_input(octets: bytes) -> None:
    for parse in DOORS:
        with suppress(WireError):
            parse(octets)
    with suppress(WireError):
        for message in unwrap_untrusted(octets):
            parse_untrusted(message)
    with suppress(WireError):
        decompress_untrusted(octets, limit=LIMIT)
    for envelope, stream in ((PLAIN, octets), (SEALED, octets), (SEALED, SEALED.seal(octets))):
        reader = StreamReader(envelope, limit=LIMIT)
        with suppress(WireError):
            for at in range(0, len(stream), 7):  # a stream ends a read wherever it likes
                reader.receive_untrusted(stream[at : at + 7])
    for step in KeyStep:
        with suppress(WireError):
            perform_untrusted(step, octets, Keyring([KEY]))
    KeyQuery(time=1, number=1, members=3).receive_untrusted("n2", octets)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
