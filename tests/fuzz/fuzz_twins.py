"""Both engines on the same octets, from the device and from a VTEP: alike, and every frame accounted for.

The native engine is not instrumented: what is drawn follows the Python engine's branches, which are the
specification's.

python tests/fuzz/fuzz_twins.py -max_total_time=20
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from control.operator.build import native_obstacle  # noqa: E402  (found by the path above)

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from support.twins import VNI, Twin, balance

    from tunnel.vxlan import build_header

PIECE_MAX = 400  # octets: enough for every header there is


def one_input(octets: bytes) -> None:
    """The first octet says how what follows is cut, and which pieces come from where."""
    if not octets:
        return
    how, rest = octets[0], octets[1 : 8 * PIECE_MAX]
    size = 1 + how % PIECE_MAX
    pieces = [rest[at : at + size] for at in range(0, len(rest), size)][:8]
    engines = [Twin(kind) for kind in ("python", "native")]
    try:
        for number, piece in enumerate(pieces):
            for engine in engines:
                tell(engine, piece, (how >> 3) + number)
        for engine in engines:
            balance(engine)
        python, native = (engine.statistics() for engine in engines)
        assert python.ledger == native.ledger, (python.ledger, native.ledger)
        assert {key: drops for key, drops in python.drops.items() if drops} == native.drops
        assert sorted(engines[0].written) == sorted(engines[1].written)
    finally:
        for engine in engines:
            engine.close()


def tell(engine: Twin, piece: bytes, where: int) -> None:
    if where % 3 == 0 and len(piece) > 10:
        engine.from_device(piece[10:], header=piece[:10])
    elif where % 3 == 1:
        engine.from_vtep(build_header(VNI) + piece)
    else:
        engine.from_vtep(piece)


if __name__ == "__main__":
    obstacle = native_obstacle()
    if obstacle is not None:
        sys.exit(print(f"left out: no native engine: {obstacle}"))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
