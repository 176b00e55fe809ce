"""IP masquerade of a routed network: an nftables table of our own, and nothing else of the host's rules.

    inside → inside         as it is: nodes see each other's true addresses
    inside → elsewhere      this host's address, or no answer would find its way back; groups left alone
    elsewhere → inside      likewise, unless it is for our own subnet

These are the rules of Flannel's own chain, in its order.  The first lets go what kube-proxy has marked to be
masqueraded by itself.

A table is called after its device, is replaced whole, and is removed at exit.  After a crash there may be
one without its device, which dies with its daemon: the next start of any weft sweeps it away.

Heads up: read nft(8), NAT STATEMENTS, before changing this file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import subprocess
from collections.abc import Collection
from typing import Any

from overlay.errors import DeviceError
from overlay.route import IpNetwork
from tunnel import netlink

# From the specification
KUBE_PROXY_MARK = 0x4000  # kube-proxy --iptables-masquerade-bit, 14
GROUPS = {4: "224.0.0.0/4", 6: "ff00::/8"}

# Ours
PREFIX = "weft-masquerade-"
NFT_SECONDS = 10.0

_FAMILIES = {4: "ip", 6: "ip6"}


def ruleset(device: str, network: IpNetwork, subnet: IpNetwork) -> str:
    """What `nft -f` reads: the device's table, replaced whole."""
    ip, table = _FAMILIES[network.version], f"{_FAMILIES[network.version]} {table_name(device)}"
    return "\n".join(
        (
            f"table {table}",  # so that there is one to delete
            f"delete table {table}",
            f"table {table} {{",
            "  chain postrouting {",
            "    type nat hook postrouting priority srcnat",
            f"    meta mark & {KUBE_PROXY_MARK:#x} == {KUBE_PROXY_MARK:#x} return",
            f"    {ip} saddr {subnet} {ip} daddr {network} return",
            f"    {ip} saddr {network} {ip} daddr {subnet} return",
            f"    {ip} saddr != {network} {ip} daddr {subnet} return",
            f"    {ip} saddr {network} {ip} daddr != {GROUPS[network.version]} masquerade fully-random",
            f"    {ip} saddr != {network} {ip} daddr {network} masquerade fully-random",
            "  }",
            "}",
            "",
        )
    )


def table_name(device: str) -> str:
    """What nft takes for a name has letters, digits and little else; the rest is written as /hex."""
    return PREFIX + re.sub(r"[^A-Za-z0-9_.-]", lambda match: f"/{match[0].encode().hex()}/", device)


def ensure_masquerade(device: str, network: IpNetwork, subnet: IpNetwork) -> None:
    """Has the table of this device hold exactly its rules.

    Raises:
        DeviceError: ENOENT, there is no nft here; else what nft said.
    """
    _nft(["-f", "-"], ruleset(device, network, subnet))


def remove_masquerade(device: str) -> None:
    """Takes the device's tables away.  Idempotent; without nft there is none."""
    name = table_name(device)
    for family, table in _tables():
        if table == name:
            _delete(family, table)


def sweep_masquerade(ours: Collection[str]) -> None:
    """Takes the tables away whose device is no more, or is about to be ours: their daemon had no time to."""
    for family, table in _tables():
        device = device_of(table)
        if device in ours or netlink.link(device) is None:
            _delete(family, table)


def device_of(table: str) -> str:
    """The inverse of `table_name`."""
    written = table.removeprefix(PREFIX)
    return re.sub(r"/([0-9a-f]+)/", lambda match: bytes.fromhex(match[1]).decode(errors="replace"), written)


def _delete(family: str, table: str) -> None:
    with contextlib.suppress(DeviceError):  # somebody was quicker
        _nft(["delete", "table", family, table])


def _tables() -> list[tuple[str, str]]:
    """Every table of ours: family and name."""
    try:
        listed: dict[str, Any] = json.loads(_nft(["-j", "list", "tables"]) or "{}")
    except (DeviceError, ValueError):  # no nft, or no nftables in this kernel: none of ours either
        return []
    tables = [each["table"] for each in listed.get("nftables", []) if "table" in each]
    return [(each["family"], each["name"]) for each in tables if each["name"].startswith(PREFIX)]


def _nft(arguments: list[str], text: str = "") -> str:
    try:
        done = subprocess.run(
            ["nft", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=NFT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        number = getattr(error, "errno", None) or errno.ETIMEDOUT
        why = "masquerade programs nftables with the nft command"
        raise DeviceError(
            "nft", number, why=why, advice="apt install nftables, or masquerade = false"
        ) from error
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), "no reason given")
        why = f"nft refused the rules: {said}"
        raise DeviceError("nft", errno.EINVAL, why=why, advice="masquerade = false, or rules of your own")
    return done.stdout
