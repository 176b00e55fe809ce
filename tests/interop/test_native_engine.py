"""What only the native engine can suffer: a bug in it, and a wish for more of its threads than there are."""

from __future__ import annotations

import pytest
from support.lab import ROOT
from support.serving import StartLab, exit_status

from bench.lab.topology import NodeKind, segment
from control.operator.build import native_obstacle

OBSTACLE = native_obstacle()
pytestmark = [
    *ROOT,
    pytest.mark.interop,
    pytest.mark.skipif(OBSTACLE is not None, reason=f"no native engine: {OBSTACLE}"),
]
UNAVAILABLE = 2


def test_a_panic_ends_the_daemon_with_its_reason_and_everything_removed(start_lab: StartLab) -> None:
    lab = start_lab(segment("panic", NodeKind.WEFT, NodeKind.BARE), constants=("engine=native", "breaks=2"))
    place, daemon = lab["n1"], lab.daemons["n1"]
    assert place.run(["ip", "-o", "link", "show", "weft0"]).returncode == 0
    assert exit_status(daemon) == UNAVAILABLE
    assert "native engine: it broke: broken on purpose" in daemon.read_output()
    assert "weft0" not in place.run(["ip", "-o", "link"]).stdout
    assert "Traceback" not in daemon.read_output()
