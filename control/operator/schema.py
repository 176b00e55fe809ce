"""The configuration as types: what every key is called, what it holds, what it is when left out.

One model per table of the file.  `config` reads a file, variables and flags into them; `weft config
schema`, the reference in docs/config.md and the names of the `WEFT_…` variables all come from here, so a
key is declared once.  Everything is frozen: a configuration in force does not change under its readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator

from control.intent.desired import NodeSubnet
from control.operator.client import DEFAULT_SOCKET
from control.operator.fields import (
    GOSSIP_PORT,
    AddressField,
    ApiEndpointField,
    DeviceField,
    Endpoint,
    GossipEndpointField,
    InterfaceField,
    MacField,
    MtuField,
    NameField,
    NetworkField,
    PathField,
    PortField,
    Range,
    UnderlayField,
    VniField,
    VtepField,
)
from overlay.addr import IpAddress, NetworkId, Vtep, parse_ip

# From the specification
VXLAN_PORT = 4789  # RFC 7348 section 5, assigned by IANA
LINUX_VXLAN_PORT = 8472  # what Linux, and so Flannel and Calico, used before the assignment
FLANNEL_UDP_PORT = 8285  # Flannel's udp backend
FLANNEL_VNI = 1  # Flannel's vxlan backend

# Ours
WORKERS_MAX = 64
CORE_MAX = 1023  # the last that a cpu_set_t of glibc has room for
FDB_MAX = 1 << 20
AGEING_MAX = 1_000_000  # seconds, the most IEEE 802.1Q-2018 table 8-6 allows


# Gossip is for others: it is received at every address of one family.
GOSSIP_BIND = {4: Endpoint("0.0.0.0", GOSSIP_PORT), 6: Endpoint("::", GOSSIP_PORT)}  # noqa: S104

Sources = tuple[Path | str | None, Mapping[str, object], Mapping[str, str]]
"""A file, flags and variables."""


class Engine(StrEnum):
    """Which datapath carries frames."""

    AUTO = "auto"
    NATIVE = "native"
    PYTHON = "python"


class Switch(StrEnum):
    """A rung of the offload ladder: probed for, insisted on, or left alone."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Log(StrEnum):
    """The least severe message that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Mode(StrEnum):
    """One Ethernet segment, or a subnet per node."""

    BRIDGE = "bridge"
    ROUTED = "routed"


class Encap(StrEnum):
    """The wire format."""

    VXLAN = "vxlan"
    FLANNEL_UDP = "flannel-udp"


class Strictness(StrEnum):
    """What becomes of a VXLAN header with reserved bits set: ignored as the RFC says, or refused."""

    RFC7348 = "rfc7348"
    LINUX = "linux"


class Table(BaseModel):
    """A table of the file: no key it does not know, no value it has to guess at."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def default_bind(underlays: Iterable[IpAddress]) -> Endpoint:
    """Where a node with these addresses gossips if nobody says: over IPv4 if it can, else over IPv6."""
    versions = {address.version for address in underlays if not address.is_link_local}
    return GOSSIP_BIND[6 if versions == {6} else 4]


def _list(**details: Any) -> Any:
    """A TOML array held as a tuple."""
    return Field(default=(), strict=False, **details)


# A StrEnum is written as its value, which strict validation would not take.
EngineField = Annotated[Engine, Field(strict=False)]
SwitchField = Annotated[Switch, Field(strict=False)]
LogField = Annotated[Log, Field(strict=False)]
ModeField = Annotated[Mode, Field(strict=False)]
EncapField = Annotated[Encap, Field(strict=False)]
StrictnessField = Annotated[Strictness, Field(strict=False)]


class NodeConfig(Table):
    """This machine and the daemon on it."""

    name: NameField
    """The node's name in the pool; default: the host name."""
    underlay: tuple[UnderlayField, ...] = _list()
    """Addresses or devices to send from; default: the default route's."""
    engine: EngineField = Engine.AUTO
    """Which datapath carries frames."""
    workers: Annotated[int, Range("a number of workers", 1, WORKERS_MAX)] = 1
    """Threads of the native engine, each with a queue of every device and a socket on every port."""
    cores: tuple[Annotated[int, Range("a core", 0, CORE_MAX)], ...] = _list()
    """The core that each worker stays on; default: wherever the scheduler has it run."""
    socket: PathField = DEFAULT_SOCKET
    """The Unix socket of the local API, mode 0660."""
    state_dir: PathField = "/var/lib/weft"
    """What outlives a restart: the snapshot of the pool, granted leases."""
    log: LogField = Log.INFO
    """The least severe message that is logged."""


class OffloadConfig(Table):
    """The offload ladder: each rung probed for (auto), insisted on (on) or left alone (off)."""

    tap_gso: SwitchField = Switch.AUTO
    """Whole super-frames at the device (vnet_hdr, TSO and USO)."""
    udp_gso: SwitchField = Switch.AUTO
    """Several datagrams in one send (UDP_SEGMENT)."""
    udp_gro: SwitchField = Switch.AUTO
    """Several datagrams in one read (UDP_GRO)."""
    tunnel_gso: SwitchField = Switch.AUTO
    """One super-packet through an inject TAP; bypasses the host's OUTPUT rules."""
    rx_repair: SwitchField = Switch.AUTO
    """Unfinished inner checksums of a neighbour on the same host are completed."""


class GossipConfig(Table):
    """The pool.  Without this table a node knows its static peers only."""

    bind: GossipEndpointField = GOSSIP_BIND[4]
    """Where gossip is received, over UDP and TCP; default: `[::]:7946` if no underlay address is IPv4."""
    advertise: GossipEndpointField | None = None
    """What other members are told to send to; default: `bind`, if it is one address, else an underlay's."""
    join: tuple[GossipEndpointField, ...] = _list()
    """Members to ask for the pool, at the start and every 30 s."""
    keyring: PathField | None = None
    """A JSON list of base64 keys as Serf writes it; the first encrypts.  Rewritten when keys are rotated."""


class ApiConfig(Table):
    """The local API, beside its Unix socket."""

    listen: ApiEndpointField | None = None
    """An additional TCP address; whoever reaches it may read everything."""


class PeerConfig(Table):
    """A static VTEP; in a routed network, with the subnet behind it."""

    vtep: VtepField
    """Its underlay address, or address:port; default port: the network's."""
    subnet: NetworkField | None = None
    """Routed networks: the subnet behind it."""
    mac: MacField | None = None
    """Routed networks over VXLAN: the MAC address of its tunnel device."""


class NetworkConfig(Table):
    """One network and its device."""

    name: NameField
    """Unique in this daemon; default: the device's name."""
    mode: ModeField = Mode.BRIDGE
    """One Ethernet segment, or a subnet per node."""
    encap: EncapField = Encap.VXLAN
    """The wire format; flannel-udp needs mode routed."""
    vni: VniField | None = None
    """The VXLAN network identifier; routed networks default to Flannel's 1."""
    port: PortField = VXLAN_PORT
    """UDP port; default 4789, for routed networks 8472 (vxlan) and 8285 (flannel-udp)."""
    device: DeviceField
    """The TAP (bridge) or TUN (flannel-udp) made for it; default weft0, weft1, …"""
    address: tuple[InterfaceField, ...] = _list()
    """The device's own addresses, with their prefix."""
    mtu: MtuField = "auto"
    """The device's MTU; auto: the underlay's less the encapsulation."""
    peers: tuple[PeerConfig, ...] = _list()
    """Static VTEPs: address, address:port, or a table."""
    learning: bool = True
    """Bind source MACs of received frames to the VTEP they came from."""
    flood: bool = True
    """Send unknown unicast to every VTEP."""
    suppress: bool = True
    """Answer ARP and neighbor solicitations from what is known."""
    strictness: StrictnessField = Strictness.RFC7348
    """Reserved VXLAN bits are ignored (rfc7348) or refused (linux)."""
    ageing_s: Annotated[int, Range("seconds", 1, AGEING_MAX)] = 300
    """Seconds after which a learned MAC nobody used is forgotten, up to a sixtieth of them (or one) later."""
    fdb_max: Annotated[int, Range("a number of entries", 1, FDB_MAX)] = 4096
    """Learned MACs at most; beyond, frames are carried and not learned from."""
    network: NetworkField | None = None
    """Routed: the whole overlay; or net_conf."""
    net_conf: PathField | None = None
    """Routed: Flannel's net-conf.json instead of network, encap, vni and port."""
    subnet: NetworkField | None = None
    """Routed: this node's subnet; left out, it is leased."""
    subnet_len: Annotated[int, Range("a prefix length", 1, 126)] | None = None
    """Routed: the prefix length of leased subnets; default 24, or a quarter of the network; IPv6: 64."""
    subnet_min: AddressField | None = None
    """Routed: the base of the first subnet that founders lease; default: the network's second."""
    subnet_max: AddressField | None = None
    """Routed: the base of the last subnet that founders lease; default: the network's last."""
    founders: tuple[NameField, ...] = _list()
    """Routed: the nodes that may grant leases."""
    subnet_file: PathField | None = None
    """Routed: where Flannel's subnet.env is written."""
    masquerade: bool = False
    """Routed: what leaves the overlay, or enters it from elsewhere, gets this host's address (nftables)."""

    @field_validator("peers", mode="before")
    @classmethod
    def _peers_on_the_networks_port(cls, peers: object, info: ValidationInfo) -> object:
        if not isinstance(peers, list):
            return peers
        port = info.data.get("port", VXLAN_PORT)
        tables = [peer if isinstance(peer, dict) else {"vtep": peer} for peer in peers]
        return [
            {**table, "vtep": _with_port(table["vtep"], port)} if "vtep" in table else table
            for table in tables
        ]

    @property
    def id(self) -> NetworkId:
        """The name as the tables know it."""
        return NetworkId(self.name)

    @property
    def vteps(self) -> tuple[Vtep, ...]:
        """The static ones."""
        return tuple(peer.vtep for peer in self.peers)

    @property
    def nodes(self) -> tuple[NodeSubnet, ...]:
        """Those with a subnet behind them."""
        return tuple(
            NodeSubnet(peer.vtep, peer.subnet, peer.mac) for peer in self.peers if peer.subnet is not None
        )


def _with_port(text: object, port: int) -> object:
    """A bare address gets the port; what is not one stays as it is, for its own error."""
    try:
        return str(Vtep(parse_ip(str(text)), port))
    except ValueError:
        return text


class Config(Table):
    """The effective configuration.  `config.load` makes one."""

    node: NodeConfig
    offload: OffloadConfig = OffloadConfig()
    gossip: GossipConfig | None = None
    api: ApiConfig = ApiConfig()
    networks: tuple[NetworkConfig, ...] = Field(alias="network", strict=False)

    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _sources: Sources = PrivateAttr(default=(None, {}, {}))
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def origins(self) -> Mapping[str, str]:
        """Key path (`network[0].vni`) → where its value is from: default, file:line, variable or flag."""
        return self._origins

    @property
    def sources(self) -> Sources:
        """What `load` was given, so that it can be read again."""
        return self._sources

    @property
    def notes(self) -> tuple[str, ...]:
        """What is no mistake, and not all that was written either: the operator should know."""
        return self._notes

    def remember(self, origins: Mapping[str, str], sources: Sources, notes: tuple[str, ...] = ()) -> None:
        """`load` alone says this, once, before anybody else has the configuration."""
        self._origins = origins
        self._sources = sources
        self._notes = notes


TABLES: Mapping[str, type[Table]] = {
    "node": NodeConfig,
    "offload": OffloadConfig,
    "gossip": GossipConfig,
    "api": ApiConfig,
    "network": NetworkConfig,
}
"""The tables a variable or a flag can name, as the file calls them."""
