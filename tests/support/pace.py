"""How frames come to the Python engine: many to a drain, or one after a pause.

Alone, an IPv4 frame of 54 octets or more, and any datagram, of a remembered flow goes a shorter way.
"""

from __future__ import annotations

import pytest

from tunnel import egress, ingress
from tunnel.carriage import QUIET_SECONDS

# Seconds from which on the engine takes a pause for one.
IN_BURSTS, ALONE = float("inf"), -1.0
PACES = {IN_BURSTS: "in bursts", ALONE: "alone"}


@pytest.fixture(params=[*PACES], ids=[*PACES.values()])
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Every drain is one of a burst, or every drain is after a pause, whenever the last one was."""
    for module in (egress, ingress):
        monkeypatch.setattr(module, "QUIET_SECONDS", request.param)
    return float(request.param)


# For tests of several frames in one drain, of one frame in a drain, and of what tells the two apart.
in_bursts = pytest.mark.parametrize("pace", [IN_BURSTS], ids=[PACES[IN_BURSTS]], indirect=True)
alone = pytest.mark.parametrize("pace", [ALONE], ids=[PACES[ALONE]], indirect=True)
by_the_clock = pytest.mark.parametrize("pace", [QUIET_SECONDS], ids=["by the clock"], indirect=True)
