"""What a record says, octet for octet: a map of networks, each field with a bound.

MACs and IPs, of which there may be many, are runs of octets:

    Macs   n × ( MAC 6 │ sequence 4, BE )          Ips   n × ( address 16, IPv4 mapped │ MAC 6 )

Everything beyond a bound is refused, whoever sent it; the largest body is 128 KiB.  Heads up: a field may be
added, for readers pass over what they do not know; none may change its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

from control.membership.pack import (
    COLLECTION_MAX,
    U16,
    U32,
    U64,
    Fields,
    fields_untrusted,
    name_untrusted,
    pack,
    text_untrusted,
)
from control.membership.wire import host_untrusted
from overlay.addr import IpAddress, Mac, NetworkId, Vni, is_station, parse_ip, unmap, vni
from overlay.errors import MalformedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

IpNetwork = IPv4Network | IPv6Network
LeaseRange = tuple[IpNetwork, IpNetwork]
"""The first and the last of the subnets that are leased."""

# Ours
RECORD_OCTETS = 128 << 10
NETWORKS_MAX = 64
VTEPS_MAX = 16
SUBNETS_MAX = 16
MACS_MAX = 1024  # of one node, over all its networks
IPS_MAX = 1024
GRANTS_MAX = 1024  # of one founder, over all its networks
FOUNDERS_MAX = 64  # of one network
ID_OCTETS = 64
WORD_OCTETS = 32
POOL_ID_OCTETS = 16
SUBNET_OCTETS = 43  # of its text: 39 of an IPv6 address and its prefix

_MAC_ENTRY, _IP_ENTRY = 10, 22


@dataclass(frozen=True, slots=True)
class LocalMac:
    """A MAC behind its node.

    Attributes:
        sequence: How often it has moved to get there; of two nodes that say they have it, the higher is
            right (RFC 7432 section 7.7).
    """

    mac: Mac
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """A subnet a founder gave away: to the node of that name and identity, as its n-th act.

    Attributes:
        number: Counts what the founder decided, from 1; it never goes back.
        is_released: The holder gave it back; the grant stays written down so that nothing older revives it.
    """

    subnet: IpNetwork
    node: str
    weft_id: str
    number: int
    is_released: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """A lease as its holder has it: which subnet, and by which act of which founder."""

    subnet: IpNetwork
    founder: str
    founder_id: str
    number: int


@dataclass(frozen=True, slots=True)
class LeaseWord:
    """What a node says of the leases of a network.

    Attributes:
        pool_id: Founders, network and range, hashed: two pools must not mix.
        subnet_len: How long a leased subnet's prefix is.
        founders: Who may grant, in their order: whoever joins need not be told.
        asks: The founder it wants a subnet of; empty: none.
        free: How many a founder could grant; 0 for who is none, and for one that must not.
        held: What it has.
        knows: Each founder it has heard, and under which identity.
        grants: What it gave away as a founder.
        within: The range that is leased of; None: the whole network but its first subnet.  A reader that
            does not know the field finds another pool id than it would have: it is of another pool, loudly.
    """

    pool_id: bytes
    subnet_len: int = 24
    founders: tuple[str, ...] = ()
    asks: str = ""
    free: int = 0
    held: Holding | None = None
    knows: tuple[tuple[str, str], ...] = ()
    grants: tuple[Grant, ...] = ()
    within: LeaseRange | None = None


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """What a node says of one of its networks.

    Attributes:
        name: The operator's word for it, there.
        vni: None where the format has none.
        vteps: Where it receives, the first of a family preferred; all on `port`.
        mac: Its device's own.
        subnets: What is routed to it.
        macs: What is behind its device, itself included.
        ips: Who has which address there.
        leases: Where subnets are leased, what it has to say of that.
        network: The whole overlay of a routed network; None also from a weft that does not say.
    """

    name: NetworkId
    mode: str
    encap: str
    vni: Vni | None
    port: int
    vteps: tuple[IpAddress, ...] = ()
    mac: Mac | None = None
    subnets: tuple[IpNetwork, ...] = ()
    macs: tuple[LocalMac, ...] = ()
    ips: tuple[tuple[IpAddress, Mac], ...] = ()
    leases: LeaseWord | None = None
    network: IpNetwork | None = None


# Writing.


def encode_networks(networks: Iterable[NetworkRecord]) -> bytes:
    """A record's body."""
    return pack({"Networks": [_network(each) for each in networks]})


def _network(network: NetworkRecord) -> dict[str, object]:
    told: dict[str, object] = {
        "Name": network.name,
        "Mode": network.mode,
        "Encap": network.encap,
        "Port": network.port,
        "Vteps": [address.packed for address in network.vteps],
    }
    if network.vni is not None:
        told["VNI"] = network.vni
    if network.mac is not None:
        told["Mac"] = network.mac
    if network.macs:
        told["Macs"] = b"".join(each.mac + each.sequence.to_bytes(4, "big") for each in network.macs)
    if network.ips:
        told["Ips"] = b"".join(_mapped(address) + mac for address, mac in network.ips)
    if network.subnets:
        told["Subnets"] = [str(subnet) for subnet in network.subnets]
    if network.leases is not None:
        told["Leases"] = _leases(network.leases)
    if network.network is not None:
        told["Network"] = str(network.network)
    return told


def _leases(word: LeaseWord) -> dict[str, object]:
    told: dict[str, object] = {"Pool": word.pool_id, "Len": word.subnet_len, "Founders": list(word.founders)}
    if word.asks:
        told["Asks"] = word.asks
    if word.free:
        told["Free"] = word.free
    if word.held is not None:
        held = word.held
        told["Held"] = [str(held.subnet), held.founder, held.founder_id, held.number]
    if word.knows:
        told["Knows"] = [list(each) for each in word.knows]
    if word.grants:
        told["Grants"] = [_grant(each) for each in word.grants]
    if word.within is not None:
        told["Range"] = [str(subnet) for subnet in word.within]
    return told


def _grant(grant: Grant) -> list[object]:
    return [str(grant.subnet), grant.node, grant.weft_id, grant.number, grant.is_released]


def _mapped(address: IpAddress) -> bytes:
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


# Reading.


@lru_cache(maxsize=2048)
def parse_networks_untrusted(body: bytes) -> tuple[NetworkRecord, ...]:
    """What a record's body says.

    Raises:
        UnsupportedError: More of something than one node may have.
        WireError: Not what a weft writes.
    """
    if len(body) > RECORD_OCTETS:
        raise UnsupportedError(f"record: expected at most {RECORD_OCTETS} octets, found {len(body)}")
    items = fields_untrusted(body, "record").items(b"Networks")
    networks = tuple(
        _network_untrusted(Fields(item, "network"))
        for item in list_untrusted(items, NETWORKS_MAX, "networks")
    )
    for what, most, found in (
        ("MACs", MACS_MAX, sum(len(network.macs) for network in networks)),
        ("IPs", IPS_MAX, sum(len(network.ips) for network in networks)),
        ("grants", GRANTS_MAX, sum(len(each.leases.grants) for each in networks if each.leases)),
    ):
        if found > most:
            raise UnsupportedError(f"record: expected at most {most} {what} of one node, found {found}")
    if len({network.name for network in networks}) != len(networks):
        raise MalformedError("record: expected each network once")
    return networks


def _network_untrusted(fields: Fields) -> NetworkRecord:
    mac = fields.octets(b"Mac", 6)
    return NetworkRecord(
        name=NetworkId(fields.name(b"Name")),
        mode=_word_untrusted(fields, b"Mode"),
        encap=_word_untrusted(fields, b"Encap"),
        vni=vni(fields.number(b"VNI", (1 << 24) - 1)) if fields.has(b"VNI") else None,
        port=_port_untrusted(fields.number(b"Port", U16)),
        vteps=tuple(_vtep_untrusted(each) for each in _items_untrusted(fields, b"Vteps", VTEPS_MAX)),
        mac=_mac_untrusted(mac) if mac else None,
        subnets=tuple(_subnet_untrusted(x) for x in _items_untrusted(fields, b"Subnets", SUBNETS_MAX)),
        macs=_macs_untrusted(fields.octets(b"Macs", RECORD_OCTETS)),
        ips=_ips_untrusted(fields.octets(b"Ips", RECORD_OCTETS)),
        leases=_leases_untrusted(Fields(fields.mapping(b"Leases"), "leases"))
        if fields.has(b"Leases")
        else None,
        network=_subnet_untrusted(fields.octets(b"Network", SUBNET_OCTETS))
        if fields.has(b"Network")
        else None,
    )


def _leases_untrusted(fields: Fields) -> LeaseWord:
    return LeaseWord(
        pool_id=exactly_untrusted(fields.octets(b"Pool", POOL_ID_OCTETS), POOL_ID_OCTETS, "pool id"),
        subnet_len=fields.number(b"Len", 128),
        founders=tuple(
            name_untrusted(x, "founder") for x in _items_untrusted(fields, b"Founders", FOUNDERS_MAX)
        ),
        asks=fields.name(b"Asks") if fields.has(b"Asks") else "",
        free=fields.number(b"Free", U32),
        held=_holding_untrusted(fields.items(b"Held")) if fields.has(b"Held") else None,
        knows=tuple(_known_untrusted(x) for x in _items_untrusted(fields, b"Knows", FOUNDERS_MAX)),
        grants=tuple(_grant_untrusted(x) for x in _items_untrusted(fields, b"Grants", COLLECTION_MAX)),
        within=_range_untrusted(fields.items(b"Range")) if fields.has(b"Range") else None,
    )


def _range_untrusted(value: object) -> LeaseRange:
    first, last = list_of_untrusted(value, 2, "range")
    return _subnet_untrusted(first), _subnet_untrusted(last)


def _holding_untrusted(value: object) -> Holding:
    subnet, founder, founder_id, number = list_of_untrusted(value, 4, "held")
    return Holding(
        _subnet_untrusted(subnet),
        name_untrusted(founder, "held"),
        id_untrusted(founder_id),
        number_untrusted(number, U64, "held"),
    )


def _known_untrusted(value: object) -> tuple[str, str]:
    founder, founder_id = list_of_untrusted(value, 2, "knows")
    return name_untrusted(founder, "knows"), id_untrusted(founder_id)


def _items_untrusted(fields: Fields, key: bytes, longest: int) -> list[Any]:
    return list_untrusted(fields.items(key), longest, key.decode())


def _word_untrusted(fields: Fields, key: bytes) -> str:
    """`bridge`, `vxlan`: words of the configuration; one we do not know is a network we do not share."""
    return name_untrusted(fields.octets(key, WORD_OCTETS), key.decode())


def _port_untrusted(port: int) -> int:
    if port == 0:
        raise MalformedError("port: expected 1 to 65535, found 0")
    return port


def _vtep_untrusted(value: object) -> IpAddress:
    if type(value) is not bytes:
        raise MalformedError(f"VTEP: expected an address, found {value!r:.40}")
    return parse_ip(host_untrusted(value))


def _mac_untrusted(octets: bytes) -> Mac:
    if len(octets) != 6 or not is_station(octets):
        raise MalformedError(f"MAC: expected six octets of one station, found {octets.hex(':')}")
    return Mac(octets)


def _macs_untrusted(octets: bytes) -> tuple[LocalMac, ...]:
    if len(octets) % _MAC_ENTRY:
        raise MalformedError(f"MACs: expected a multiple of {_MAC_ENTRY} octets, found {len(octets)}")
    if len(octets) > MACS_MAX * _MAC_ENTRY:
        raise UnsupportedError(
            f"MACs: expected at most {MACS_MAX} of one node, found {len(octets) // _MAC_ENTRY}"
        )
    return tuple(
        LocalMac(_mac_untrusted(entry[:6]), int.from_bytes(entry[6:], "big"))
        for entry in cut(octets, _MAC_ENTRY)
    )


def _ips_untrusted(octets: bytes) -> tuple[tuple[IpAddress, Mac], ...]:
    if len(octets) % _IP_ENTRY:
        raise MalformedError(f"IPs: expected a multiple of {_IP_ENTRY} octets, found {len(octets)}")
    if len(octets) > IPS_MAX * _IP_ENTRY:
        raise UnsupportedError(
            f"IPs: expected at most {IPS_MAX} of one node, found {len(octets) // _IP_ENTRY}"
        )
    return tuple(
        (_host_untrusted(entry[:16]), _mac_untrusted(entry[16:])) for entry in cut(octets, _IP_ENTRY)
    )


def _host_untrusted(packed: bytes) -> IpAddress:
    address = unmap(IPv6Address(packed))
    if address.is_multicast or address.is_unspecified or address.is_loopback or int(address) == U32:
        raise MalformedError(f"IP: expected a host's address, found {address}")
    return address


def _subnet_untrusted(value: object) -> IpNetwork:
    try:
        return ip_network(text_untrusted(value, "subnet"))
    except ValueError as error:
        raise MalformedError(f"subnet: {error}") from None


def _grant_untrusted(value: object) -> Grant:
    subnet, node, weft_id, number, is_released = list_of_untrusted(value, 5, "grant")
    if type(is_released) is not bool:
        raise MalformedError(f"grant: expected a boolean, found {is_released!r:.40}")
    return Grant(
        _subnet_untrusted(subnet),
        name_untrusted(node, "grant"),
        id_untrusted(weft_id),
        number_untrusted(number, U64, "grant"),
        is_released,
    )


# What messages and bodies have in common.


def exactly_untrusted(data: bytes, octets: int, what: str) -> bytes:
    """The octets, if there are as many as there must be."""
    if len(data) != octets:
        raise MalformedError(f"{what}: expected {octets} octets, found {len(data)}")
    return data


def cut(data: bytes, size: int) -> tuple[bytes, ...]:
    """The octets in pieces of that size."""
    return tuple(data[at : at + size] for at in range(0, len(data), size))


def id_untrusted(value: object) -> str:
    """A node's identity: printable, as it reaches the operator."""
    text = name_untrusted(value, "weft_id")
    if len(text) > ID_OCTETS:
        raise MalformedError(f"weft_id: expected at most {ID_OCTETS} characters, found {len(text)}")
    return text


def number_untrusted(value: object, maximum: int, what: str) -> int:
    """An unsigned number."""
    if type(value) is not int or not 0 <= value <= maximum:
        raise MalformedError(f"{what}: expected 0 to {maximum}, found {value!r:.40}")
    return value


def list_untrusted(value: object, longest: int, what: str) -> list[Any]:
    """A list of at most so many."""
    if type(value) is not list or len(value) > longest:
        raise MalformedError(f"{what}: expected a list of at most {longest}, found {value!r:.40}")
    return value


def list_of_untrusted(value: object, length: int, what: str) -> list[Any]:
    """A list of exactly so many."""
    if type(value) is not list or len(value) != length:
        raise MalformedError(f"{what}: expected a list of {length}, found {value!r:.40}")
    return value
