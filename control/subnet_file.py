"""Flannel's subnet.env: what Docker's option maker and Flannel's CNI plugin read of a node's subnet.

    FLANNEL_NETWORK=10.5.0.0/16
    FLANNEL_SUBNET=10.5.72.1/24      the first address that is a host's, with the subnet's length
    FLANNEL_MTU=1450
    FLANNEL_IPMASQ=false             whether we masquerade: who reads it then must not, and the reverse

The keys, their order and forms are Flannel's; an IPv6 network has its own two keys instead of the first two.
The file stays when the daemon goes, as Flannel's does: containers outlive daemons.
"""

from __future__ import annotations

from pathlib import Path

from control.state import KeptFile
from overlay.route import IpNetwork

# From the specification
PUBLIC_MODE = 0o644


def subnet_env(network: IpNetwork, subnet: IpNetwork, *, mtu: int, masquerade: bool) -> str:
    """The file's text."""
    version = "IPV6_" if subnet.version == 6 else ""
    return (
        f"FLANNEL_{version}NETWORK={network}\n"
        f"FLANNEL_{version}SUBNET={subnet.network_address + 1}/{subnet.prefixlen}\n"
        f"FLANNEL_MTU={mtu}\n"
        f"FLANNEL_IPMASQ={'true' if masquerade else 'false'}\n"
    )


def kept_subnet_file(path: str) -> KeptFile:
    """The file, readable by everybody; its directory is made if it is missing."""
    return KeptFile(Path(path), mode=PUBLIC_MODE)
