"""Whole datagrams and frames at an engine between doubles: all accounted for, and the next frame passes.

python tests/fuzz/fuzz_datapath.py -max_total_time=20

The engine lives on from one input to the next, as a daemon does; what an input left behind is met by the
following ones.  Every so often a new one takes its place, so that a find can be made again from its input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from support.doubles import LOCAL, REMOTE, STRANGER, VNI, VTEP_B, VTEP_C, Engine, frame

    from tunnel.vxlan import build_header

INPUTS_PER_ENGINE = 50
HEADER = build_header(VNI)
OUT, IN = frame(REMOTE, LOCAL, b"out"), frame(LOCAL, REMOTE, b"in")


class Target:
    """One engine and how many inputs it has met."""

    def __init__(self) -> None:
        self.engine = Engine(vteps=(VTEP_B, VTEP_C))
        self.engine.bind(REMOTE)
        self.inputs = 0

    def meet(self, octets: bytes) -> None:
        """Strangers, members and the host send it: raw, behind a header, behind known addresses."""
        engine = self.engine
        for sender in (STRANGER, VTEP_C):
            payloads = (octets, HEADER + octets, HEADER + IN[:12] + octets, HEADER + OUT[:12] + octets)
            engine.datagrams(*payloads, sender=sender, tos=octets[0] if octets else 0)
        engine.from_device(octets, OUT[:12] + octets)
        self.inputs += 1
        engine.clock.advance(1.0)
        engine.datapath.expire(now=engine.clock.now)
        ledger = engine.statistics().ledger
        if not ledger.balances or ledger.held:
            raise AssertionError(f"{ledger} after {octets.hex()}")
        engine.from_device(OUT)
        engine.from_underlay(IN)
        if engine.sent[-1].frame != OUT or engine.device.frames[-1] != IN:
            raise AssertionError(f"no frame passes after {octets.hex()}")
        engine.sent.clear()
        engine.device.written.clear()


TARGET = [Target()]


def one_input(octets: bytes) -> None:
    if TARGET[0].inputs == INPUTS_PER_ENGINE:
        TARGET[0] = Target()
    TARGET[0].meet(octets)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
