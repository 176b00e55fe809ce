"""The MAC address of a network's device, as the configuration alone decides it.

So it can be told to the other hosts before the device is there (`weft config peer`).
"""

from __future__ import annotations

import hashlib

from control.operator.schema import NetworkConfig
from overlay.addr import IpAddress, Mac


def stable_mac(config: NetworkConfig, underlay: IpAddress) -> Mac:
    """The device's address: the same after every restart, and another at every VTEP.

    Hosts remember who has an IP, and for minutes VTEPs that suppress neighbor discovery answer for them: a
    node that came back with a random MAC would be there and unheard.  A VTEP's address, port, VNI and device
    are nobody else's on the overlay.
    """
    digest = hashlib.sha256(f"{underlay} {config.port} {config.vni} {config.device}".encode()).digest()
    # IEEE 802-2014 section 8.2: the second bit says locally administered, the first a group.
    return Mac(bytes([digest[0] & 0xFC | 0x02]) + digest[1:6])
