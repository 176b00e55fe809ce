"""Flannel's net-conf.json, read as Flannel reads it, into the keys of one of our networks.

    {"Network": "10.5.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472}}

Keys are found in any case and unknown ones are passed over, for Go's decoder does both.  Without a `Backend`
it is `udp`, whatever Flannel's documentation says.  A port of 0 is the kernel's own, 8472.  `MTU` there is
the underlay's, and the device's is 50 less.  What has no counterpart here (DirectRouting, GBP, Learning) is
read over: a routed network of ours never learns, and what comes without encapsulation the host takes anyway.

Every problem is told with its line, as those of the TOML file are.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from control.operator.fields import MTU_MIN, PORT_MAX, VNI_MAX, found
from control.operator.schema import FLANNEL_UDP_PORT, FLANNEL_VNI, LINUX_VXLAN_PORT, Encap

# From the specification: flannel's pkg/subnet/config.go and pkg/backend/vxlan
BACKENDS = {"udp": Encap.FLANNEL_UDP, "vxlan": Encap.VXLAN}
DEFAULT_BACKEND = "udp"
VXLAN_MTU_OVERHEAD = 50
NETWORK_LENGTH_MAX = {4: 28, 6: 124}
SUBNET_LENGTH_MAX = {4: 30, 6: 126}
SUBNET_LENGTH = {4: 24, 6: 64}
KEYS = (
    "Network",
    "IPv6Network",
    "EnableIPv4",
    "EnableIPv6",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
)

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with the file; `why` begins with its path and line."""

    why: str
    suggestion: str | None = None


@dataclass(frozen=True, slots=True)
class NetConf:
    """What the file says, in the words of our own configuration, and what is wrong with it.

    Attributes:
        notes: What is right and has no effect here, each beginning with path and line.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()


def read_net_conf(path: str) -> NetConf:
    """The file's keys; none where it cannot be read at all."""
    try:
        octets = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return NetConf(mistakes=(Mistake(f"{path}: cannot be read: {why}"),))
    return parse_net_conf_untrusted(path, octets)


def parse_net_conf_untrusted(path: str, octets: bytes) -> NetConf:
    """The same of its octets; never an exception, whatever they are."""
    try:
        text = octets.decode()
        document = json.loads(text)
    except json.JSONDecodeError as error:
        why = f"{path}:{error.lineno}: not JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        return NetConf(mistakes=(Mistake(why),))
    except UnicodeDecodeError:
        return NetConf(mistakes=(Mistake(f"{path}: expected UTF-8 text, as JSON is"),))
    except (RecursionError, ValueError) as error:  # nested too deeply; an integer of 5000 digits
        return NetConf(mistakes=(Mistake(f"{path}: not JSON: {str(error)[:80]}"),))
    if not isinstance(document, dict):
        return NetConf(mistakes=(Mistake(f"{path}:1: expected an object, found {found(document)}"),))
    return _Reader(path, text, document).read()


class _Reader:
    """One document, and what was found wrong with it so far."""

    def __init__(self, path: str, text: str, document: Mapping[str, Any]) -> None:
        self._path = path
        self._text = text
        self._document = document
        self._values = {name.lower(): value for name, value in document.items()}
        self._mistakes: list[Mistake] = []
        self._notes: list[str] = []

    def read(self) -> NetConf:
        keys: dict[str, Any] = {}
        network = self._network()
        if network is not None:
            keys["network"] = str(network)
            keys |= self._subnets(network)
        keys |= self._backend()
        return NetConf(keys, tuple(self._mistakes), tuple(self._notes))

    def _network(self) -> Network | None:
        """The IPv4 network, or the IPv6 one where IPv4 is off; both are two networks to us."""
        has_ipv4, has_ipv6 = self._switch("EnableIPv4", is_on=True), self._switch("EnableIPv6", is_on=False)
        if not has_ipv4 and not has_ipv6:
            self._complain("EnableIPv4", "expected one of EnableIPv4 and EnableIPv6, found neither")
            return None
        if has_ipv4 and has_ipv6:
            why = "only the IPv4 network is used; IPv6Network needs a [[network]] of its own"
            self._notes.append(f"{self._path}:{self._line('EnableIPv6')}: EnableIPv6 beside IPv4: {why}")
        name, version = ("Network", 4) if has_ipv4 else ("IPv6Network", 6)
        value = self._value(name)
        if value is None:
            strange = self._values.keys() - {key.lower() for key in KEYS}
            is_misspelt = bool(difflib.get_close_matches(name.lower(), strange, n=1))
            why = "expected the whole overlay's subnet, found nothing"
            self._complain(name, why, name if is_misspelt else None)
            return None
        try:
            network = ip_network(value if isinstance(value, str) else "", strict=False)
        except ValueError:
            self._complain(name, f"expected a subnet like 10.5.0.0/16, found {found(value)}")
            return None
        if network.version != version:
            self._complain(name, f"expected an IPv{version} subnet, found {found(value)}")
            return None
        if network.prefixlen > NETWORK_LENGTH_MAX[version]:
            self._complain(
                name, f"expected a prefix of at most /{NETWORK_LENGTH_MAX[version]}, found {value}"
            )
            return None
        return network

    def _subnets(self, network: Network) -> dict[str, Any]:
        """The length of the nodes' subnets and the range they are leased of, where the file says so."""
        prefix = "" if network.version == 4 else "IPv6"
        low, high = network.prefixlen + 2, SUBNET_LENGTH_MAX[network.version]
        default = max(SUBNET_LENGTH[network.version], low)
        length = self._number(f"{prefix}SubnetLen", low, high, default)
        first, last = (self._address(f"{prefix}Subnet{bound}", network, length) for bound in ("Min", "Max"))
        if first is not None and last is not None and int(first) > int(last):
            self._complain(f"{prefix}SubnetMin", f"expected at most SubnetMax, {last}, found {first}")
            return {}
        is_told = self._value(f"{prefix}SubnetLen") is not None
        found = {"subnet_len": length if is_told else None, "subnet_min": first, "subnet_max": last}
        keys = {key: value for key, value in found.items() if value is not None}
        return {key: value if key == "subnet_len" else str(value) for key, value in keys.items()}

    def _address(self, name: str, network: Network, length: int) -> Address | None:
        value = self._value(name)
        if value is None:
            return None
        try:
            address = ip_address(value if isinstance(value, str) else "")
        except ValueError:
            self._complain(name, f"expected an address, found {found(value)}")
            return None
        if address.version != network.version or address not in network:
            self._complain(name, f"{address} is outside the network {network}")
            return None
        if int(address) % (1 << (network.max_prefixlen - length)):
            self._complain(name, f"expected the base of a /{length}, found {address}")
            return None
        return address

    def _backend(self) -> dict[str, Any]:
        value = self._value("Backend")
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self._complain("Backend", f"expected an object, found {found(value)}")
            return {}
        values = {str(name).lower(): each for name, each in value.items()}
        kind = values.get("type", DEFAULT_BACKEND)
        if not isinstance(kind, str) or kind not in BACKENDS:
            near = next(iter(difflib.get_close_matches(str(kind), BACKENDS, n=1)), None)
            self._complain("Type", f"Backend.Type: expected vxlan or udp, found {found(kind)}", near)
            return {}
        is_vxlan = kind == "vxlan"
        keys: dict[str, Any] = {"encap": BACKENDS[kind].value}
        port = self._number("Port", 0, PORT_MAX, 0, values.get("port"), "Backend.Port")
        keys["port"] = port or (LINUX_VXLAN_PORT if is_vxlan else FLANNEL_UDP_PORT)
        if is_vxlan:
            keys["vni"] = self._number("VNI", 0, VNI_MAX, FLANNEL_VNI, values.get("vni"), "Backend.VNI")
            mtu = self._number("MTU", MTU_MIN, PORT_MAX, 0, values.get("mtu"), "Backend.MTU")
            if mtu:
                keys["mtu"] = mtu - VXLAN_MTU_OVERHEAD
        return keys

    def _switch(self, name: str, *, is_on: bool) -> bool:
        value = self._value(name)
        if value is not None and not isinstance(value, bool):
            self._complain(name, f"expected true or false, found {found(value)}")
            return is_on
        return is_on if value is None else value

    def _number(
        self, name: str, low: int, high: int, default: int, value: object = None, label: str = ""
    ) -> int:
        value = self._value(name) if not label else value
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        why = f"expected a number of {low} to {high}, found {found(value)}"
        self._complain(name, f"{label}: {why}" if label else why)
        return default

    def _value(self, name: str) -> Any:
        """Go's decoder takes the last of several spellings, and null as absent."""
        return self._values.get(name.lower())

    def _complain(self, name: str, why: str, suggestion: str | None = None) -> None:
        told = why if why.startswith("Backend.") else f"{name}: {why}"
        self._mistakes.append(Mistake(f"{self._path}:{self._line(name)}: {told}", suggestion))

    def _line(self, name: str) -> int:
        """Where the key stands; a missing one is missed from the object's first line."""
        place = re.search(rf'"{re.escape(name)}"\s*:', self._text, re.IGNORECASE)
        return 1 if place is None else self._text.count("\n", 0, place.start()) + 1
