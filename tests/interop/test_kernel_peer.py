"""`weft config peer --kernel` prints what makes the other host a member; it is typed there, and it is one.

n1  weft ──── n2, where nothing but iproute2 is
"""

from __future__ import annotations

import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.engines import ON_BOTH
from support.lab import ROOT, BuildLab
from support.serving import serve
from support.traffic import transfer

from bench.lab import checks
from bench.lab.commands import run_command, weft_command
from bench.lab.namespaces import Place
from bench.lab.topology import NodeKind, segment

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

OVERLAY = {4: ("10.9.0.1/24", "10.9.0.2/24"), 6: ("fd09::1/64", "fd09::2/64")}
UNDERLAY = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


def printed_for(host: str, *argv: str, member_address: str) -> str:
    command = [*weft_command(), "config", "peer", "--kernel", "--for", host, *argv]
    command += ["--member-address", member_address]
    return run_command(command, why="what the other host must do").stdout


def typed(place: Place, script: str) -> subprocess.CompletedProcess[str]:
    return place.run(["sh", "-euc", script])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [4789, 8472])
def test_what_is_printed_makes_a_working_member(
    build_lab: BuildLab, tmp_path: Path, version: int, port: int
) -> None:
    lab = build_lab(segment("peer", NodeKind.BARE, NodeKind.BARE, underlay_version=version))
    here, there = UNDERLAY[version]
    own, members = OVERLAY[version]
    flags = ["--underlay", here, "--vni", "42", "--port", str(port), "--peer", there, "--address", own]
    with serve(lab["n1"], tmp_path / "n1", "--device", "weft0", *flags):
        typed(lab["n2"], printed_for(there, *flags, member_address=members))
        addresses = [ip_address(each.split("/")[0]) for each in (own, members)]
        assert checks.ping(lab["n1"], addresses[1], count=1).complete
        assert checks.ping(lab["n2"], addresses[0], count=1).complete
        assert transfer(lab["n2"], lab["n1"], addresses[0], 2_000_000).is_intact
        assert transfer(lab["n1"], lab["n2"], addresses[1], 2_000_000).is_intact


def test_two_hosts_told_by_one_configuration_reach_each_other_too(
    build_lab: BuildLab, tmp_path: Path
) -> None:
    lab = build_lab(segment("peers", NodeKind.BARE, NodeKind.BARE, NodeKind.BARE))
    flags = ["--underlay", "192.0.2.1", "--vni", "7", "--address", "10.9.0.1/24"]
    flags += ["--peer", "192.0.2.2", "--peer", "192.0.2.3"]
    with serve(lab["n1"], tmp_path / "n1", "--device", "weft0", *flags):
        for number in (2, 3):
            script = printed_for(f"192.0.2.{number}", *flags, member_address=f"10.9.0.{number}/24")
            typed(lab[f"n{number}"], script)
        places = {number: lab[f"n{number}"] for number in (1, 2, 3)}
        pairs = [
            (place, ip_address(f"10.9.0.{other}"))
            for number, place in places.items()
            for other in places
            if other != number
        ]
        assert all(ping.complete for ping in checks.ping_all(pairs))
