"""What one peer may say to another about records: a value or WireError, and a core that lives on.

python tests/fuzz/fuzz_records.py -max_total_time=20
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

with atheris.instrument_imports(include=["overlay", "control"]):
    from support.records import Desk, member, network

    from control.membership.recordbody import parse_networks_untrusted
    from control.membership.recordwire import parse_message_untrusted
    from overlay.errors import WireError

KINDS = b"RrAaWPSBD"


def one_input(octets: bytes) -> None:
    for parse in (parse_message_untrusted, parse_networks_untrusted):
        with suppress(WireError):
            parse(octets)
    desk = Desk(member("m1"), member("m2"))
    desk.records.publish([network(1)], now=desk.now)
    for kind in KINDS:
        desk.records.receive(bytes((kind,)) + octets, "m1", now=desk.now)
    desk.run(2.0)
    desk.said()
    if desk.held("us") is None:
        raise AssertionError(f"our own record is gone: {octets.hex()}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
