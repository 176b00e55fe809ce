"""One daemon that serves two networks over one address and port, and a kernel node that is in both.

    n1  weft: red VNI 42 on weft0, blue VNI 43 on weft1 ──── n2  kernel: vxlan42, vxlan43

Red is 10.9.0.0/24, blue is 10.8.0.0/24.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.lab import BuildLab
from support.serving import serve
from support.traffic import type_in

from bench.lab.namespaces import Daemon, Lab
from bench.lab.topology import Address, NodeKind, segment

RED, BLUE = 42, 43
DEVICES = {RED: "weft0", BLUE: "weft1"}
SUBNETS = {RED: "10.9.0", BLUE: "10.8.0"}
CONFIGURATION = """
[node]
name = "n1"
underlay = ["192.0.2.1"]

[[network]]
name = "red"
vni = 42
device = "weft0"
address = ["10.9.0.1/24"]
peers = ["192.0.2.2"]

[[network]]
name = "blue"
vni = 43
device = "weft1"
address = ["10.8.0.1/24"]
peers = ["192.0.2.2"]
"""


@dataclass(frozen=True, slots=True)
class Two:
    """What runs."""

    lab: Lab
    daemon: Daemon


def address_of(node: int, vni: int) -> Address:
    """The overlay address of that node in that network."""
    return ip_address(f"{SUBNETS[vni]}.{node}")


@pytest.fixture
def two(build_lab: BuildLab, tmp_path: Path) -> Iterator[Two]:
    """Both nodes, running."""
    lab = build_lab(segment("two", NodeKind.BARE, NodeKind.BARE))
    for vni in SUBNETS:
        name = f"vxlan{vni}"
        type_in(
            lab["n2"],
            f"ip link add {name} mtu 1450 type vxlan id {vni} dstport 4789 local 192.0.2.2 remote 192.0.2.1",
            f"ip address add {address_of(2, vni)}/24 dev {name}",
            f"ip link set {name} up",
        )
    with serve(lab["n1"], tmp_path / "n1", configuration=CONFIGURATION) as daemon:
        yield Two(lab, daemon)
