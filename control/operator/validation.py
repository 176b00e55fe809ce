"""Validates a document: the typed configuration, or everything that is wrong with it at once.

What is wrong with one key hides nothing of the others.  Where a value cannot be read, something else stands
in for it, in several readings of the document:

    mode, encap              each of their values
    port, VNI, device, …     what they are when left out, and once more something nobody would write
    anything else            what it is when left out

A contradiction that is there in every reading holds whatever was meant, and is told; one that only some have
may come from what stands in, and is not.  So the operator hears of all that is certain and of nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import pairwise, product
from typing import Any

from pydantic import ValidationError

from control.operator.checks import contradictions
from control.operator.fields import PORT_MAX, VNI_MAX, is_name
from control.operator.problems import Finding, finding_of
from control.operator.schema import (
    FLANNEL_UDP_PORT,
    FLANNEL_VNI,
    LINUX_VXLAN_PORT,
    VXLAN_PORT,
    WORKERS_MAX,
    Config,
    Encap,
    Mode,
)
from control.operator.toml_lines import TomlPath

Document = dict[str, Any]

# Ours
STAND_IN_ADDRESSES = (int(IPv4Address("198.51.100.0")), int(IPv4Address("203.0.113.0")))  # RFC 5737


def validate(document: Document, unknown: Collection[TomlPath] = ()) -> tuple[Config | None, list[Finding]]:
    """The typed configuration and what is wrong with it.

    Args:
        document: As it was written, with what depends on the machine.
        unknown: Keys left out of it because what would have said them cannot be read.
    """
    config, findings = None, []
    try:
        config = Config.model_validate(_filled(document))
    except ValidationError as error:
        findings = _once(finding_of(each) for each in error.errors(include_url=False))
    hidden = {*unknown, *(_place_around(finding.at) for finding in findings)}
    if config is not None and not hidden:
        return config, list(contradictions(config))
    return config, findings + _certain(document, hidden)


def _once(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))


def _place_around(at: TomlPath) -> TomlPath:
    """What cannot be read there: a key, one address of several, or one key of a peer."""
    if at[0] != "network":
        return at[:2]
    return at[: {"peers": 5, "address": 4}.get(str(at[2]), 3)] if len(at) > 2 else at


def _filled(document: Document) -> Document:
    """The document, with what the keys of each network imply."""
    whole = deepcopy(document)
    networks = whole.get("network")
    for index, network in enumerate(networks if isinstance(networks, list) else []):
        if isinstance(network, dict):
            _fill(network, index)
    return whole


def _fill(network: Document, index: int) -> None:
    """What a network's other keys imply: name follows the device, port and VNI the format."""
    is_routed = network.get("mode") == Mode.ROUTED
    is_flannel_udp = network.get("encap") == Encap.FLANNEL_UDP
    network.setdefault("device", f"flannel{index}" if is_flannel_udp else f"weft{index}")
    network.setdefault("name", network["device"] if is_name(network["device"]) else f"network{index}")
    routed_port = LINUX_VXLAN_PORT if is_routed else VXLAN_PORT
    network.setdefault("port", FLANNEL_UDP_PORT if is_flannel_udp else routed_port)
    if is_routed and not is_flannel_udp:
        network.setdefault("vni", FLANNEL_VNI)


def _certain(document: Document, hidden: Collection[TomlPath]) -> list[Finding]:
    """The contradictions of every reading, but for those about what is hidden."""
    if ("network",) in hidden:
        return []  # too little is left to make sense of
    try:
        readings = [list(contradictions(each.read(document, hidden))) for each in _readings()]
    except ValidationError:
        return []
    first, *others = readings
    certain = [finding for finding in first if all(finding in other for other in others)]
    return [finding for finding in certain if not any(finding.at[: len(at)] == at for at in hidden)]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One way to read a document some of which is hidden."""

    mode: Mode
    encap: Encap
    is_odd: bool

    def read(self, document: Document, hidden: Collection[TomlPath]) -> Config:
        whole = deepcopy(document)
        for path in hidden:
            self._put(whole, path)
        whole.setdefault("node", {}).setdefault("name", "unnamed")
        return Config.model_validate(_filled(whole))

    def _put(self, whole: Document, path: TomlPath) -> None:
        """Puts there what stands in, or nothing."""
        last = path[-1]
        table: Any = whole
        for step, inner in pairwise(path):
            if isinstance(inner, str) and not isinstance(table[step], dict):
                table[step] = {}  # a peer that is written as its address alone
            table = table[step]
        value = self._stand_in(path)
        if value is not None:
            table[last] = value
        else:
            table.pop(last, None)

    def _stand_in(self, path: TomlPath) -> object:
        """What is valid there, and by itself contradicts nothing; None: what the key is when left out."""
        number = next((step for step in reversed(path) if isinstance(step, int)), 0)
        address = str(IPv4Address(STAND_IN_ADDRESSES[self.is_odd] + number))
        odd = {
            "port": PORT_MAX - number,
            "vni": VNI_MAX - number,
            "device": f"odd-{number}",
            "net_conf": "/",
            "workers": WORKERS_MAX,
        }
        match path:
            case ("network", int(), "mode"):
                return self.mode.value
            case ("network", int(), "encap"):
                return self.encap.value
            case ("network", int(), "address", int()):
                return f"{address}/32"
            case ("network", int(), "peers", int(), "vtep"):
                return address
            case ("network", int(), "peers", int()):
                return {"vtep": address}
            case ("network", int()):
                return {key: odd[key] for key in ("vni", "port", "device")}
            case (_, str(key)) | (_, int(), str(key)) if self.is_odd:
                return odd.get(key)
            case _:
                return None


def _readings() -> Iterator[_Reading]:
    return (_Reading(*each) for each in product(Mode, Encap, (False, True)))
