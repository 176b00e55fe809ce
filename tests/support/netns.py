"""What the kernel holds in a namespace, as a set of lines: before less after, and the reverse, is a leak."""

from __future__ import annotations

import re

from bench.lab.namespaces import Place

QUESTIONS = (
    ("ip", "-o", "-d", "link", "show"),
    ("ip", "-o", "addr", "show"),
    ("ip", "-4", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "-4", "rule", "show"),
    ("ip", "-6", "rule", "show"),
    ("ip", "neigh", "show", "nud", "permanent"),
    ("bridge", "fdb", "show"),
    ("tc", "qdisc", "show"),
    ("nft", "list", "ruleset"),
)
VOLATILE = re.compile(r" (?:expires|valid_lft|preferred_lft) \S+| linkmode \S+| refcnt \d+| allmulti \d+")


def kernel_state(place: Place) -> frozenset[str]:
    """Devices, addresses, routes, rules, neighbours, FDB, tc and nft, one line each, led by the question."""
    lines: set[str] = set()
    for question in QUESTIONS:
        lines |= _answers(place, question)
    devices = place.run(["ls", "/sys/class/net"]).stdout.split()
    for device in devices:
        for direction in ("ingress", "egress"):
            lines |= _answers(place, ("tc", "filter", "show", "dev", device, direction))
    return frozenset(lines)


def _answers(place: Place, question: tuple[str, ...]) -> set[str]:
    told = place.run(question, check=False).stdout.splitlines()
    return {f"{' '.join(question)}: {VOLATILE.sub('', line).strip()}" for line in told if line.strip()}
