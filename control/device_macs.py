"""The MACs of this node's devices, kept: a node of a pool is known by them wherever it is.

    state_dir/devices.json     {"schema": "weft.devices/1", "macs": {"weft0": "02:…"}}

Without a pool a device's MAC follows from its VTEP's address (`operator.vtep_mac`).  A pool follows a node to
another address, and hosts remember MACs for longer than the pool takes: so the MAC comes along.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from control.state import KeptFile, read_file
from overlay.addr import Mac, format_mac, is_station, parse_mac

# Ours
DEVICES_FILE = "devices.json"
SCHEMA = "weft.devices/1"

log = logging.getLogger("weft.state")


def remembered_macs(state_dir: Path) -> dict[str, Mac]:
    """Device → its MAC; none where there is no file, or nothing that can be understood.

    Raises:
        DeviceError: The file is there and cannot be read.
    """
    text = read_file(state_dir / DEVICES_FILE)
    if text is None:
        return {}
    try:
        document = json.loads(text)
        macs = {str(device): parse_mac(str(mac)) for device, mac in document["macs"].items()}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s: %s; the devices get new MACs", state_dir / DEVICES_FILE, error)
        return {}
    return {device: mac for device, mac in macs.items() if is_station(mac)}


def keep_macs(state_dir: Path, macs: Mapping[str, Mac]) -> None:
    """Has the disk know them; a refusal is logged, and costs no more than a new MAC some day."""
    told = {device: format_mac(mac) for device, mac in sorted(macs.items())}
    KeptFile(state_dir / DEVICES_FILE).keep(json.dumps({"schema": SCHEMA, "macs": told}) + "\n")
