"""The rungs of the offload ladder as a test forces and observes them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bench.lab.namespaces import Place

RUNGS: Mapping[str, Mapping[str, str]] = {
    "plain": dict.fromkeys(("tap_gso", "udp_gso", "udp_gro", "tunnel_gso"), "off"),
    "batch": {"tunnel_gso": "off"},
    "super": {},
}
"""What `weft status` calls the rung, and the switches that hold a node on it over a veth."""


def offload_table(switches: Mapping[str, str]) -> str:
    """The switches as a configuration file has them, at its end."""
    return "\n".join(["[offload]", *(f'{switch} = "{position}"' for switch, position in switches.items())])


def injected(place: Place) -> int:
    """How many octets the inject TAP's filter has redirected; 0 where there is no such TAP."""
    shown = place.run(["tc", "-s", "filter", "show", "dev", "weft-inject0", "ingress"], check=False).stdout
    return sum(int(number) for number in re.findall(r"Sent (\d+) bytes", shown))
