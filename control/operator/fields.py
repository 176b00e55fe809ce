"""How each sort of configuration value is written: from text to the rich type, once.

pydantic walks the document and gathers what is wrong; what a port or a MAC address is, and how to say
that something is not one, stands here.  Every complaint has the same shape: expected this, found that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface, ip_network
from typing import Annotated, Any, Literal, NewType

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from overlay.addr import (
    IpAddress,
    Mac,
    Vni,
    Vtep,
    format_mac,
    is_station,
    parse_ip,
    parse_mac,
    parse_vtep,
)

InterfaceName = NewType("InterfaceName", str)
"""The name of a network device, as the kernel takes it."""

IpInterface = IPv4Interface | IPv6Interface
IpNetwork = IPv4Network | IPv6Network
Mtu = int | Literal["auto"]

# From the specification
PORT_MAX = (1 << 16) - 1  # RFC 768
VNI_MAX = (1 << 24) - 1  # RFC 7348 section 5
INTERFACE_NAME_MAX = 15  # octets: Linux's IFNAMSIZ is 16, its last octet NUL
MTU_MIN = 68  # octets, RFC 791 section 3.2
IPV6_MTU_MIN = 1280  # octets, RFC 8200 section 5
MTU_MAX = (1 << 16) - 1

# Ours
QUOTED_MAX = 60  # characters of a wrong value shown back to the operator

NAME_MAX = 128  # characters
NAME_FORM = f"1 to {NAME_MAX} letters, digits, dots, dashes and underscores, a letter or digit first"

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_MAX - 1}}}")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a control-plane socket is bound or reached: a host (an address, or a name) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def found(value: object) -> str:
    """The value as the operator would have written it, cut to a readable length."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= QUOTED_MAX else f"{text[: QUOTED_MAX - 1]}…"


@dataclass(frozen=True, slots=True)
class Text:
    """Annotates a field written as a string and kept as something better.

    Attributes:
        what: What the operator is told was expected.
        parse: Text to value; its ValueError may say more than `what`.
        write: Value to text, the inverse.
        example: One valid text, for the schema and the reference.
    """

    what: str
    parse: Callable[[str], object]
    write: Callable[[Any], str] = str
    example: str = ""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(self.write),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "description": self.what, "examples": [self.example]}

    def _validate(self, value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"expected {self.what}, found {found(value)}")
        try:
            return self.parse(value)
        except ValueError as error:
            reason = str(error)
            if reason.startswith("expected "):
                raise
            raise ValueError(f"expected {self.what}, found {found(value)}") from None


@dataclass(frozen=True, slots=True)
class Range:
    """Annotates an integer: `what` it is, and its bounds, both included."""

    what: str
    low: int
    high: int
    word: Literal["auto"] | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        number = {"type": "integer", "minimum": self.low, "maximum": self.high}
        return {"anyOf": [{"const": self.word}, number]} if self.word else number

    def _validate(self, value: object) -> object:
        if self.word is not None and value == self.word:
            return value
        if isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high:
            return value
        either = f'"{self.word}" or ' if self.word else ""
        raise ValueError(f"expected {either}{self.what} of {self.low} to {self.high}, found {found(value)}")


def is_name(value: object) -> bool:
    """Whether a node or a network can be called this: it is a label of metrics and a word in commands."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"expected a name of {NAME_FORM}, found {found(text)}")
    return text


def parse_interface_name(text: str) -> InterfaceName:
    """The device name, if the kernel would take it literally (it expands `%`).

    Raises:
        ValueError: Longer than 15 octets, or with characters the kernel refuses.
    """
    if not text or text in {".", ".."} or re.search(r"[\s/:%\x00]", text):
        raise ValueError(f"expected a device name without spaces, '/', ':' or '%', found {found(text)}")
    if len(text.encode()) > INTERFACE_NAME_MAX:
        raise ValueError(
            f"expected a device name of at most {INTERFACE_NAME_MAX} octets, found {found(text)}"
        )
    return InterfaceName(text)


def _underlay(text: str) -> IpAddress | InterfaceName:
    try:
        address = parse_ip(text)
    except ValueError:
        if not re.search(r"[^0-9.]", text):
            raise ValueError(f"expected an address or a device name, found {found(text)}") from None
        return parse_interface_name(text)
    return _unicast(address)


def _unicast(address: IpAddress) -> IpAddress:
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise ValueError(f"expected the address of one host, found {found(str(address))}")
    return address


def _vtep(text: str) -> Vtep:
    # `NetworkConfig` has put the network's port behind an address that came without one.
    vtep = parse_vtep(text, default_port=PORT_MAX)
    _unicast(vtep.address)
    return vtep


def _unicast_mac(text: str) -> Mac:
    mac = parse_mac(text)
    if not is_station(mac):
        raise ValueError(f"expected the MAC address of one interface, found {found(text)}")
    return mac


def _interface(text: str) -> IpInterface:
    if "/" not in text:
        raise ValueError(f"expected an address with its prefix, like 10.9.0.1/24, found {found(text)}")
    interface = ip_interface(text)
    _unicast(interface.ip)
    return interface


def parse_endpoint(text: str, *, default_port: int) -> Endpoint:
    """The endpoint written `host`, `host:port` or `[address]:port`.

    Raises:
        ValueError: Neither an address nor a host name, or a port outside 1 … 65535.
    """
    try:
        vtep = parse_vtep(text, default_port=default_port)
    except ValueError:
        host, colon, port = text.partition(":")
        if not _HOST_NAME.fullmatch(host) or not re.search("[A-Za-z]", host):
            raise
        port = port if colon else str(default_port)
        if not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
            raise ValueError(f"expected a port of 1 to {PORT_MAX}, found {port!r}") from None
        return Endpoint(host, int(port))
    return Endpoint(str(vtep.address), vtep.port)


def _endpoint_on(default_port: int) -> Callable[[str], Endpoint]:
    return lambda text: parse_endpoint(text, default_port=default_port)


def _path(text: str) -> str:
    if not text or "\x00" in text:
        raise ValueError(f"expected a path, found {found(text)}")
    return text


# From the specification
GOSSIP_PORT = 7946  # memberlist's default
# Ours
API_PORT = 7480

NameField = Annotated[str, Text("a name", _name, example="n1")]
DeviceField = Annotated[InterfaceName, Text("a device name", parse_interface_name, example="weft0")]
UnderlayField = Annotated[
    IpAddress | InterfaceName, Text("an address or a device name", _underlay, example="192.0.2.1")
]
AddressField = Annotated[IpAddress, Text("an address", parse_ip, example="10.5.16.0")]
MacField = Annotated[Mac, Text("a MAC address", _unicast_mac, format_mac, example="02:00:5e:10:00:01")]
VtepField = Annotated[Vtep, Text("an address, or address:port", _vtep, example="192.0.2.2:4789")]
InterfaceField = Annotated[
    IpInterface, Text("an address with its prefix, like 10.9.0.1/24", _interface, example="10.9.0.1/24")
]
NetworkField = Annotated[
    IpNetwork, Text("a subnet like 10.5.0.0/16, no host bits set", ip_network, example="10.5.0.0/16")
]
PathField = Annotated[str, Text("a path", _path, example="/run/weft/weft.sock")]
GossipEndpointField = Annotated[
    Endpoint, Text("host or host:port", _endpoint_on(GOSSIP_PORT), example="192.0.2.2:7946")
]
ApiEndpointField = Annotated[
    Endpoint, Text("address or address:port", _endpoint_on(API_PORT), example="127.0.0.1:7480")
]
PortField = Annotated[int, Range("a port", 1, PORT_MAX)]
VniField = Annotated[Vni, Range("a VNI", 0, VNI_MAX)]
MtuField = Annotated[Mtu, Range("an MTU", MTU_MIN, MTU_MAX, word="auto")]
